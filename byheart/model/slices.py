"""Work on a model that is cut into slices: a generator that pauses after each, and returns what it made.

It yields how many tokens were read since the pause before; 0 where it waits for something else than the model.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

Made = TypeVar("Made")


def run_through(slices: Generator[int, None, Made]) -> Made:
    """What work in slices makes, done without a pause."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            made: Made = end.value
            return made
