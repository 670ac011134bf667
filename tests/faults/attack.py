"""What an attack is, and how its tries are run: each from a seed, in a process that may hang or die.

A try that hangs or kills its process is a failure like any other, and the next one is made in a new process.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

Try = Callable[[int, Random], list[str]]
"""The n-th try with its own random numbers -> what went wrong, a line each; nothing where byheart held."""
_MEMORY = 6 << 30
"""Bytes that a try may take, so that an absurd size ends in an error and not in a machine without memory."""
_SHOWN = 12
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Attack:
    """A row of the report.

    Args:
        prepare: makes what all tries need in a folder of its own, and gives the try.
        tries: in all; a call of the try makes ``batch`` of them.
        seconds: that one call may take.
    """

    name: str
    what: str
    prepare: Callable[[Path], Try]
    tries: int
    batch: int = 1
    seconds: float = 30


@dataclass
class Found:
    """What an attack found; ``examples`` are lines that begin with the number of the call."""

    name: str
    what: str
    tries: int = 0
    failures: int = 0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)


def run(attack: Attack, *, seed: int, share: float = 1.0, only: int | None = None) -> Found:
    """Make ``share`` of an attack's tries, or the one call that is numbered ``only``."""
    calls = range(max(1, round(attack.tries * share / attack.batch))) if only is None else range(only, only + 1)
    found, start = Found(attack.name, attack.what), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number, problems in _run(attack.prepare(Path(folder)), calls, seed, attack.seconds):
            found.tries += attack.batch
            found.failures += min(len(problems), attack.batch)
            found.examples += [f"{number}: {problem}" for problem in problems]
    # Those that differ say more than the first ones.
    distinct = {example.partition(": ")[2][:60]: example for example in reversed(found.examples)}
    found.examples = list(reversed(distinct.values()))[: _SHOWN if only is None else None]
    found.seconds = round(time.monotonic() - start, 1)
    return found


def _run(attempt: Try, calls: range, seed: int, seconds: float) -> Iterator[tuple[int, list[str]]]:
    left = list(calls)
    while left:
        ours, theirs = _fork.Pipe(duplex=False)
        child = _fork.Process(target=_work, args=(attempt, left, seed, theirs))
        child.start()
        theirs.close()
        try:
            while left and ours.poll(seconds):
                yield left[0], ours.recv()
                left = left[1:]
            if left:
                yield left[0], [f"it was not done after {seconds:g} s"]
        except EOFError:
            child.join(1)
            yield left[0], [f"the process died with exit code {child.exitcode}"]
        finally:
            # The group is its own: with it go the processes that a try has started.
            with suppress(ProcessLookupError):
                os.killpg(child.pid or 0, signal.SIGKILL)
            child.join()
            ours.close()
            left = left[1:]


def _work(attempt: Try, calls: list[int], seed: int, results: Connection) -> None:
    os.setpgid(0, 0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.RLIM_INFINITY))
    for number in calls:
        try:
            problems = attempt(number, Random(f"{seed}/{number}"))
        except BaseException:
            problems = [f"the try itself failed: {_flat(traceback.format_exc(limit=-3))}"]
        results.send(problems)


def refused(call: Callable[[], object], *errors: type[Exception]) -> list[str]:
    """Nothing where ``call`` raises one of the errors; else what it did instead."""
    try:
        call()
    except errors:
        return []
    except BaseException as error:
        return [f"{type(error).__name__}: {_flat(str(error))}"]
    return ["it was accepted"]


def _flat(text: str) -> str:
    return ascii(" ".join(text.split()))[1:-1][-300:]
