"""Threads that read files for tenants in turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path

import pytest

from byheart.model.slices import Slices
from byheart.serving.engine.fair_threads import FairThreads
from byheart.serving.engine.hosted_model import HostedModel
from byheart.serving.engine.residents import Residents
from byheart.serving.engine.ticket import Ticket
from byheart.serving.jobs import MemoryRef
from byheart.text.encoder import ChatEncoder
from tests.conftest import tiny_tokenizer
from tests.samples import backbone, codec_of

ENCODER = ChatEncoder(tiny_tokenizer())


def nothing(ticket: Ticket) -> Slices[None]:
    """The work of a job."""
    yield None


class Held:
    """One thread that is busy until ``go``, and what others did in it."""

    def __init__(self) -> None:
        self.threads = FairThreads(1, name="test")
        self.done = list[str]()
        self._event = threading.Event()
        self.first = self.threads.submit("first", partial(self._event.wait, 60))

    def submit(self, tenant: str, name: str) -> Future[None]:
        return self.threads.submit(tenant, partial(self.done.append, name))

    def go(self) -> None:
        self._event.set()
        self.threads.shutdown()


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.go()


def test_tenants_take_turns(held: Held) -> None:
    for tenant, name in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")]:
        held.submit(tenant, name)
    held.go()
    assert held.done == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_tenant_leaves_a_thread_to_the_others() -> None:
    threads, event, done = FairThreads(3, name="test"), threading.Event(), list[str]()
    begun = threading.Semaphore(0)

    def keep() -> None:
        begun.release()
        event.wait(60)

    slow = [threads.submit("a", keep) for _ in range(4)]
    for _ in range(2):
        assert begun.acquire(timeout=60)
    threads.submit("b", partial(done.append, "b")).result(60)
    assert not begun.acquire(blocking=False)
    assert done == ["b"]
    event.set()
    assert [each.result(60) for each in slow] == [None] * 4
    threads.shutdown()


def test_what_was_cancelled_is_not_done(held: Held) -> None:
    left, kept = held.submit("a", "left"), held.submit("a", "kept")
    assert left.cancel()
    held.go()
    assert (held.done, kept.result(0)) == (["kept"], None)
    with pytest.raises(CancelledError):
        left.result(0)


def test_an_error_is_of_its_own_work_alone(held: Held) -> None:
    def fail() -> None:
        raise OSError("unreadable")

    failed, other = held.threads.submit("a", fail), held.submit("a", "other")
    held.go()
    with pytest.raises(OSError, match="unreadable"):
        failed.result(0)
    assert (held.first.result(0), other.result(0), held.done) == (True, None, ["other"])


def test_a_tenants_many_files_do_not_keep_that_of_another_waiting(held: Held) -> None:
    codec_of(backbone())
    residents, model = Residents(1, held.threads, 8), HostedModel(backbone(), ENCODER)

    def fetch(name: str) -> Path:
        held.done.append(name)
        raise FileNotFoundError(name)

    async def play() -> None:
        for name in ("a1", "a2", "a3", "b1"):
            ref = MemoryRef(f"{name[0]}:{name}", partial(fetch, name))
            opening = residents.open(ref, model, Ticket(name[0], nothing))
            kept.append(opening)
            assert next(opening) is None

    kept = list[object]()
    asyncio.run(play())
    held.go()
    assert held.done == ["a1", "b1", "a2", "a3"]
