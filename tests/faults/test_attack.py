"""The attack itself: what gets through, hangs or dies is counted, and a try can be made again."""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from byheart.errors import StateError, StoreError
from tests.faults import hub
from tests.faults.attack import Attack, Try, refused, run


def _attack(attempt: Try, tries: int = 4, **settings: float) -> Attack:
    return Attack("some.attack", "what is tried", lambda folder: attempt, tries, **settings)


def test_failures_are_counted_and_said() -> None:
    found = run(_attack(lambda number, random: ["odd"] if number % 2 else []), seed=0)
    assert (found.tries, found.failures) == (4, 2)
    assert found.examples == ["1: odd"]


def test_a_share_of_the_tries_and_one_try_again() -> None:
    attack = _attack(lambda number, random: [f"{number} {random.random()}"], tries=100)
    assert run(attack, seed=0, share=0.1).tries == 10
    again = run(attack, seed=0, only=7).examples
    assert again == [example for example in run(attack, seed=0, share=0.1).examples if example.startswith("7:")]
    assert again != run(attack, seed=1, only=7).examples


@pytest.mark.parametrize(
    ("attempt", "problem"),
    [
        (lambda number, random: time.sleep(60 * (number == 1)) or [], "1: it was not done after 1 s"),
        (lambda number, random: os.kill(os.getpid(), signal.SIGKILL * (number == 1)) or [], "exit code -9"),
        (lambda number, random: [str(1 // (number - 1))] * 0, "1: the try itself failed: "),
    ],
    ids=["hangs", "dies", "raises"],
)
def test_a_try_that_ends_badly_is_a_failure_and_the_next_goes_on(attempt: Try, problem: str) -> None:
    found = run(_attack(attempt, seconds=1), seed=0)
    assert (found.tries, found.failures) == (4, 1)
    assert problem in found.examples[0]


def _raise(error: Exception) -> Callable[[], object]:
    def call() -> object:
        raise error

    return call


def test_only_the_errors_that_are_meant_refuse() -> None:
    assert refused(_raise(StateError("no")), StateError) == []
    assert refused(_raise(StoreError("no\x1b")), StateError) == ["StoreError: no\\x1b"]
    assert refused(lambda: None, StateError) == ["it was accepted"]


def test_the_hub_keeps_what_it_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hub.REQUESTS, str(tmp_path / "requests"))
    with hub.listening(tmp_path / "requests") as address:
        assert hub.requests() == []
        with pytest.raises(urllib.error.HTTPError, match="404") as refusal:
            urllib.request.urlopen(f"{address}/api/models/x")
        refusal.value.close()
        assert hub.requests() == ["GET /api/models/x"]
