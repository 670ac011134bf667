"""Whole numbers in as many bits as they carry: a range coder, with a Laplace distribution of some width for each.

Widths stand on a grid of eight per doubling, so that a hundred tables serve all numbers. Tables are made in decimal
arithmetic, which gives the same digits on every machine: a code can be read wherever it goes. The coder is
``constriction``'s (Bamler 2022, arXiv 2201.01741).

Levels are made with a dead zone: 0 stands for the numbers within ``DEAD_ZONE`` steps, and level q for those from
q - 1 + DEAD_ZONE to q + DEAD_ZONE.

Dimensions: N numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from itertools import pairwise
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

PER_DOUBLING = 8
"""Widths of the grid from one width to its double."""
NARROWEST, WIDEST = -16, 64
"""Ends of the grid: a quarter of a step, below which all numbers are taken for 0, and 256 steps."""
DEAD_ZONE = 0.6
LARGEST = (1 << 15) - 1
"""The largest level."""
# A narrow Laplace finds large numbers next to impossible; a share of a wider one makes them merely rare.
_TAIL, _WIDER = Decimal("0.03"), 4
# So many widths on either side have levels of their own; what is beyond follows after an escape.
_REACH, _MOST_LEVELS = 9, 400
_ROUNDED = 1 << 22

Levels = NDArray[np.int16]
Tables = NDArray[np.int8]
_queue, _model = constriction.stream.queue, constriction.stream.model


class LevelEncoder:
    """Levels in, bytes out."""

    def __init__(self) -> None:
        self._coder = _queue.RangeEncoder()

    def put(self, levels: Levels, tables: Tables) -> None:
        """Code ``levels`` (N,), each by its table (N,)."""
        for table, places in _groups(tables):
            _, model, most = _table(table)
            some = levels[places].astype(np.int32)
            escaped = np.abs(some) > most
            if escaped.any():
                self._coder.encode(np.where(escaped, 2 * most + 1, some + most).astype(np.int32), model)
                self._coder.encode(some[escaped] + LARGEST, _escaped())
            else:
                self._coder.encode(some + most, model)

    def put_uniform(self, numbers: NDArray[np.int32], size: int) -> None:
        """Code ``numbers`` (N,) from 0 to ``size`` - 1, all as likely."""
        self._coder.encode(numbers, _model.Uniform(max(2, size)))

    def bytes(self) -> bytes:
        """All that was put in; the coder can go on after it."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype("<u4").tobytes()


class LevelDecoder:
    """The levels in a code, taken out in the order in which they were put in."""

    def __init__(self, code: bytes) -> None:
        self._coder = _queue.RangeDecoder(np.frombuffer(code, "<u4").astype(np.uint32))

    def take(self, tables: Tables) -> Levels:
        """Levels (N,), for the tables with which they were coded."""
        levels = np.zeros(len(tables), np.int16)
        for table, places in _groups(tables):
            _, model, most = _table(table)
            some = self._coder.decode(model, len(places)) - most
            escaped = some > most
            if escaped.any():
                some[escaped] = self._coder.decode(_escaped(), int(escaped.sum())) - LARGEST
            levels[places] = some
        return levels

    def take_uniform(self, count: int, size: int) -> NDArray[np.int32]:
        """``count`` numbers from 0 to ``size`` - 1."""
        return np.asarray(self._coder.decode(_model.Uniform(max(2, size)), count), np.int32)


@lru_cache(maxsize=2)
def costs() -> NDArray[np.float32]:
    """Bits (widths, levels) of levels 0 to the most that a table has; further ones cost an escape.

    The first row is that of the width below ``NARROWEST``, which is not coded.
    """
    rows = np.zeros((WIDEST - NARROWEST + 2, _MOST_LEVELS + 1), np.float32)
    for row, width in zip(rows[1:], range(NARROWEST, WIDEST + 1), strict=True):
        counts, _, most = _table(width)
        bits = -np.log2(counts / counts.sum())
        row[: most + 1] = bits[most : 2 * most + 1]
        row[most + 1 :] = bits[-1] + np.log2(2 * LARGEST + 1)
    return rows


@lru_cache(maxsize=2)
def expectations(cut: int, unit: int) -> NDArray[np.int64]:
    """The mean sizes of levels up to ``cut``, larger ones taken for it, in ``unit`` parts of one; rows as of costs."""
    means = np.zeros(WIDEST - NARROWEST + 2, np.int64)
    for row, width in enumerate(range(NARROWEST, WIDEST + 1), start=1):
        counts, _, most = _table(width)
        sizes = np.minimum(np.abs(np.arange(-most, most + 1)), cut)
        means[row] = (int(sizes @ counts[:-1]) + cut * int(counts[-1])) * unit // int(counts.sum())
    return means


def _groups(tables: Tables) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Each table with the places where it stands; under ``NARROWEST`` nothing is coded."""
    # Of one byte, they are sorted by counting.
    order = np.argsort(tables, kind="stable")
    counts = np.bincount(tables.astype(np.int16) - (NARROWEST - 1), minlength=WIDEST - NARROWEST + 2)
    start = 0
    for row in np.flatnonzero(counts).tolist():
        stop = start + int(counts[row])
        if row:
            yield row + NARROWEST - 1, order[start:stop]
        start = stop


@lru_cache(maxsize=1)
def _escaped() -> Any:
    return _model.Uniform(2 * LARGEST + 1)


@lru_cache(maxsize=WIDEST - NARROWEST + 1)
def _table(width: int) -> tuple[NDArray[np.float64], Any, int]:
    """How often each level comes, from the least to the largest and then the escape; its model; the largest level."""
    with localcontext(Context(prec=24)):
        scale = Decimal(2) ** (Decimal(width) / PER_DOUBLING)
        most = min(_MOST_LEVELS, int(scale * _REACH) + 2)
        narrow, wide = (_side(scale * times, most) for times in (1, _WIDER))
        side = [(1 - _TAIL) * one + _TAIL * other for one, other in zip(narrow, wide, strict=True)]
        shares = [*side[:0:-1], 2 * side[0], *side[1:], 1 - 2 * sum(side)]
        counts = np.array([max(1, int(share * _ROUNDED)) for share in shares], np.float64)
    return counts, _model.Categorical((counts / counts.sum()).astype(np.float32), perfect=False), most


def _side(scale: Decimal, most: int) -> list[Decimal]:
    """The shares of half of level 0 and of levels 1 to ``most``, for a Laplace of ``scale`` steps."""
    ends = [(-(Decimal(str(DEAD_ZONE)) + level) / scale).exp() / 2 for level in range(most + 1)]
    return [Decimal("0.5") - ends[0], *(nearer - further for nearer, further in pairwise(ends))]
