"""A queue that no tenant can fill for the others."""

from __future__ import annotations

import pytest

from byheart.errors import BusyError
from byheart.serving.engine.fair_queue import FairQueue


def test_tenants_take_turns_and_their_own_jobs_keep_their_order() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for tenant, item in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")]:
        assert queue.put(tenant, item) is None
    assert [queue.take({}) for _ in range(7)] == ["a1", "b1", "c1", "a2", "b2", "a3", None]


def test_who_has_fewer_running_comes_first() -> None:
    queue: FairQueue[str] = FairQueue(10)
    queue.put("a", "a1")
    queue.put("b", "b1")
    assert queue.take({"a": 3, "b": 1}) == "b1"


def test_who_has_one_running_may_be_left_waiting() -> None:
    queue: FairQueue[str] = FairQueue(10)
    queue.put("a", "a1")
    assert queue.take({"a": 1}, full={"a"}) is None
    queue.put("b", "b1")
    assert queue.take({"a": 1}, full={"a"}) == "b1"


def test_a_full_queue_refuses_who_has_the_most_and_makes_room_for_others() -> None:
    queue: FairQueue[str] = FairQueue(3)
    for item in ("a1", "a2", "a3"):
        queue.put("a", item)
    with pytest.raises(BusyError, match="3 jobs are waiting already; try again") as refused:
        queue.put("a", "a4")
    assert refused.value.retry_after > 0
    assert queue.put("b", "b1") == "a3"
    with pytest.raises(BusyError):
        queue.put("b", "b2")
    assert len(queue) == 3


def test_what_was_left_out_is_not_taken() -> None:
    queue: FairQueue[str] = FairQueue(3)
    queue.put("a", "a1")
    queue.put("a", "a2")
    assert queue.remove("a", "a1")
    assert not queue.remove("a", "a1")
    assert queue.clear() == ["a2"]
    assert queue.take({}) is None
