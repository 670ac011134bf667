"""What a client leaves behind that hangs up: nothing that others wait for."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from byheart.model.slices import run_through
from byheart.protocol import state_file
from byheart.serving.engine import LocalEngine
from byheart.serving.engine.aside import Aside
from byheart.serving.engine.fair_threads import FairThreads
from byheart.serving.engine.hosted_model import HostedModel
from byheart.serving.engine.residents import Residents
from byheart.serving.engine.ticket import Ticket
from byheart.serving.http.settings import Settings
from byheart.serving.jobs import Ask, MemoryRef, NewText, Write
from byheart.text.encoder import ChatEncoder
from tests.conftest import tiny_tokenizer
from tests.samples import backbone, codec_of
from tests.serving.conftest import Build
from tests.serving.live import serving

ENCODER = ChatEncoder(tiny_tokenizer())


def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError("it did not come true")


def test_a_text_that_nobody_waits_for_does_not_become_tokens() -> None:
    encoder, begun, opened, made = ChatEncoder(tiny_tokenizer()), threading.Event(), threading.Event(), list[str]()
    aside = Aside(encoder.tokenizer)

    def slow(encoder: ChatEncoder) -> None:
        begun.set()
        opened.wait(60)

    first = aside.run(encoder, slow)
    next(first)
    begun.wait(60)
    left = [aside.run(encoder, lambda encoder: made.append("left")) for _ in range(3)]
    for work in left:
        next(work)
        work.close()
    last = aside.run(encoder, lambda encoder: made.append("last"))
    next(last)
    opened.set()
    run_through(first)
    run_through(last)
    until(lambda: not any(thread.name.startswith("byheart-aside") for thread in threading.enumerate()))
    assert made == ["last"]


def test_a_memory_that_nobody_waits_for_is_not_fetched() -> None:
    opened, fetched = threading.Event(), list[int]()
    aside = FairThreads(1, name="test")
    aside.submit("other", partial(opened.wait, 60))
    residents = Residents(1, aside, 8)

    def fetch() -> Path:
        fetched.append(1)
        return Path()

    async def play() -> None:
        opening = residents.open(MemoryRef("t:x", fetch), HostedModel(backbone(), ENCODER), Ticket("t", lambda _: None))
        next(opening)
        opening.close()

    codec_of(backbone())
    asyncio.run(play())
    opened.set()
    aside.shutdown()
    assert fetched == []


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    codec_of(backbone())
    made = LocalEngine({"tiny": backbone()}, max_resident=1 << 30, prefill_tokens=8, encoders={"tiny": ENCODER})
    yield made
    made.close()


def test_an_engine_does_not_wait_for_a_file_that_nobody_wants(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, opened, save = threading.Event(), threading.Event(), state_file.save

    def slow(*arguments: Any) -> Any:
        begun.set()
        opened.wait(60)
        return save(*arguments)

    monkeypatch.setattr(state_file, "save", slow)

    async def play() -> None:
        writing = asyncio.create_task(engine.write(Write("tiny", [NewText("ab")], tmp_path, method="full")))
        while not begun.is_set():
            await asyncio.sleep(0.002)
        writing.cancel()
        # The file is not written yet, and others are answered all the same.
        answer = [item async for item in engine.ask(Ask("tiny", "Who?"))]
        assert answer
        assert not opened.is_set()
        opened.set()

    asyncio.run(play())
    until(lambda: not any(thread.name.startswith("byheart-saving") for thread in threading.enumerate()))
    assert list(tmp_path.iterdir()) == []


def test_texts_of_a_streamed_write_are_held_until_they_are_written(build: Build) -> None:
    site = build(Settings(held_bytes=4_000))
    site.make("slow")
    site.engine.delay = 1.5

    def post(address: str, stream: bool) -> http.client.HTTPResponse:
        url = urlsplit(address)
        connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=60)
        connections.callback(connection.close)
        body = json.dumps({"text": "x" * 1_500, "stream": stream})
        headers = {"content-type": "application/json", "authorization": f"Bearer {site.alice}"}
        connection.request("POST", "/v1/memories/slow/writes", body, headers)
        return connection.getresponse()

    with serving(site.app) as address, ExitStack() as connections:
        first = post(address, stream=True)
        assert first.status == 200
        assert post(address, stream=True).status == 429
        first.read()
        site.engine.delay = 0.0
        last = post(address, stream=True)
        assert last.status == 200
        assert b"[DONE]" in last.read()
        assert post(address, stream=False).status == 200
