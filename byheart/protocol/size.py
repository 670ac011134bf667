"""How many bytes the state of a method takes, and which of its options decide that.

A method declares its ``Size``; ``byheart.methods.budget`` chooses from it. Counted is one text, written once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from byheart.model.backbone import Backbone


@dataclass(frozen=True)
class Size:
    """The sizes that a method can have, from the least state to the largest.

    ``nbytes``: (backbone, tokens of the text, size) -> bytes of the state. ``sizes``: tokens of the text -> what there
    is to choose from. ``options``: size -> the method's options for it; an empty dict means the defaults. ``slots``:
    (tokens of the text, size) -> how many slots among the bytes its option ``bits`` makes smaller, if it has one.
    """

    nbytes: Callable[[Backbone, int, int], int]
    sizes: Callable[[int], range]
    options: Callable[[int], dict[str, Any]]
    slots: Callable[[int, int], int] | None = None


def fixed_size(nbytes: Callable[[Backbone, int], int], *, slots: Callable[[int], int] | None = None) -> Size:
    """Nothing to choose: the defaults take ``nbytes(backbone, tokens)``, ``slots(tokens)`` among them where given."""
    counted = None if slots is None else lambda tokens, _: slots(tokens)
    return Size(lambda backbone, tokens, _: nbytes(backbone, tokens), lambda tokens: range(1), lambda _: {}, counted)


def slots_size(options: Callable[[int], dict[str, Any]], *, least: int = 1, within_text: bool = False) -> Size:
    """Any number of slots from ``least`` on; no more than the text has tokens where ``within_text``."""

    def sizes(tokens: int) -> range:
        return range(least, max(least, tokens) + 1 if within_text else sys.maxsize)

    return _of_slots(lambda tokens, slots: slots, sizes, options)


def _of_slots(
    slots: Callable[[int, int], int], sizes: Callable[[int], range], options: Callable[[int], dict[str, Any]]
) -> Size:
    """Slots are all that is kept."""
    return Size(lambda backbone, tokens, size: slots(tokens, size) * backbone.slot_bytes, sizes, options, slots)


def every_size(*, sinks: int, chunk_tokens: int) -> Size:
    """One slot for every ``every`` tokens, as ``shares`` counts them in each chunk; the least state has one per chunk.

    Args:
        sinks: slots of the first chunk that stand for one token each.
        chunk_tokens: how many tokens of the text are read at once.
    """

    def slots(tokens: int, every: int) -> int:
        chunks = [min(chunk_tokens, tokens - start) for start in range(0, tokens, chunk_tokens)]
        return every_slots(chunks, every=every, sinks=sinks)

    return _of_slots(slots, lambda tokens: range(chunk_tokens, 0, -1), lambda every: {"every": every})


def every_slots(chunks: Sequence[int], *, every: int, sinks: int) -> int:
    """How many slots are left of chunks of so many tokens: the first one's sinks, and the shares of all."""
    first = min(sinks, chunks[0])
    return first + sum(shares(n, every=every, sinks=0 if at else first) for at, n in enumerate(chunks))


def shares(tokens: int, *, every: int, sinks: int) -> int:
    """How many slots stand for what follows the sinks of ``tokens`` tokens: one per ``every`` tokens, at least one."""
    return min(tokens - sinks, max(1, math.ceil(tokens / every) - sinks))
