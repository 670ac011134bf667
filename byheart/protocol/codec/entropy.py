"""Whole numbers in as many bits as they carry: a range coder, with a Laplace distribution of some width for each.

Widths stand on a grid of eight per doubling, so that a hundred tables serve all numbers. Tables are made in decimal
arithmetic, and what is made of them takes only sums of whole numbers and single products, which give the same digits on
every machine: a code can be read wherever it goes. The coder is
``constriction``'s (Bamler 2022, arXiv 2201.01741).

Levels are made with a dead zone: 0 stands for the numbers within ``DEAD_ZONE`` steps, and level q for those from
q - 1 + DEAD_ZONE to q + DEAD_ZONE. Small levels are coded several at once, as one symbol, since a coder takes its time
for each symbol.

Dimensions: N rows, K levels of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import cached_property, lru_cache
from itertools import pairwise, product
from math import gcd
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
# A lookup of symbols that stays in a processor's cache, with levels of one byte.
_MOST_SYMBOLS, _MOST_REACH = 7000, 127
_MOST_AT_ONCE = 8

Levels = NDArray[np.int16]
_queue, _model = constriction.stream.queue, constriction.stream.model


class LevelEncoder:
    """Levels in, bytes out."""

    def __init__(self) -> None:
        self._coder = _queue.RangeEncoder()

    def put(self, levels: Levels, table: int) -> None:
        """Code ``levels`` (N, K), all by one table."""
        symbols = _symbols(table, gcd(levels.shape[1], _MOST_AT_ONCE))
        found, beyond = symbols.of(levels.ravel())
        self._coder.encode(found, symbols.model)
        if len(beyond):
            tail, last = symbols.tail, symbols.last
            escaped = beyond >= last
            self._coder.encode(np.minimum(beyond, last), tail)
            if escaped.any():
                self._coder.encode(beyond[escaped], _escaped())

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

    def take(self, rows: int, size: int, table: int) -> Levels:
        """Levels (N, K) of so many ``rows``, of ``size`` levels each, for the table with which they were coded."""
        symbols = _symbols(table, gcd(size, _MOST_AT_ONCE))
        levels = symbols.levels(self._coder.decode(symbols.model, rows * size // symbols.size))
        reaching = np.flatnonzero(np.abs(levels) == symbols.reach)
        if len(reaching):
            beyond: NDArray[np.int32] = self._coder.decode(symbols.tail, len(reaching))
            escaped = beyond == symbols.last
            if escaped.any():
                beyond[escaped] = self._coder.decode(_escaped(), int(escaped.sum()))
            levels[reaching] += (np.sign(levels[reaching]) * beyond).astype(np.int16)
        return levels.reshape(rows, size)

    def take_uniform(self, count: int, size: int) -> NDArray[np.int32]:
        """``count`` numbers from 0 to ``size`` - 1."""
        return np.asarray(self._coder.decode(_model.Uniform(max(2, size)), count), np.int32)


@dataclass(frozen=True)
class _Symbols:
    """Symbols that stand for ``size`` levels each; a level of ``reach`` says that it is so large or larger.

    By how much it is larger follows, by the model ``tail``, whose ``last`` symbol says that it does not reach either.
    """

    size: int
    reach: int
    model: Any
    tail: Any
    last: int

    def of(self, levels: Levels) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The symbols of levels, and by how much those that are so large are larger."""
        near = np.clip(levels, -self.reach, self.reach)
        reaching = np.abs(near) == self.reach
        beyond = np.abs(levels[reaching].astype(np.int32)) - self.reach
        rows = near.reshape(-1, self.size) + self.reach
        found = rows[:, 0].astype(np.int32)
        for column in range(1, self.size):
            found *= 2 * self.reach + 1
            found += rows[:, column]
        return found, beyond

    def levels(self, symbols: NDArray[np.int32]) -> Levels:
        """The levels of symbols, one after another."""
        return self._packed[symbols].view(np.int8).astype(np.int16)

    @cached_property
    def _packed(self) -> NDArray[Any]:
        """All levels of a symbol in one number, which is looked up faster than they are one by one."""
        rows = np.array([*product(range(-self.reach, self.reach + 1), repeat=self.size)], np.int8)
        return rows.view(f"u{self.size}").ravel()


@lru_cache(maxsize=2)
def costs() -> NDArray[np.float32]:
    """Bits (widths, levels) of levels 0 to the most that a table has; further ones cost an escape.

    The first row is that of the width below ``NARROWEST``, which is not coded.
    """
    rows = np.zeros((WIDEST - NARROWEST + 2, _MOST_LEVELS + 1), np.float32)
    for row, width in zip(rows[1:], range(NARROWEST, WIDEST + 1), strict=True):
        counts, most = _table(width)
        bits = -np.log2(counts / counts.sum())
        row[: most + 1] = bits[most : 2 * most + 1]
        row[most + 1 :] = bits[-1] + np.log2(LARGEST + 1)
    return rows


@lru_cache(maxsize=2)
def expectations(cut: int, unit: int) -> NDArray[np.int64]:
    """The mean sizes of levels up to ``cut``, larger ones taken for it, in ``unit`` parts of one; rows as of costs."""
    means = np.zeros(WIDEST - NARROWEST + 2, np.int64)
    for row, width in enumerate(range(NARROWEST, WIDEST + 1), start=1):
        counts, most = _table(width)
        sizes = np.minimum(np.abs(np.arange(-most, most + 1)), cut)
        means[row] = (int(sizes @ counts[:-1]) + cut * int(counts[-1])) * unit // int(counts.sum())
    return means


@lru_cache(maxsize=1)
def _escaped() -> Any:
    return _model.Uniform(LARGEST + 1)


@lru_cache(maxsize=4 * (WIDEST - NARROWEST + 1))
def _symbols(table: int, size: int) -> _Symbols:
    """Those of at most ``size`` levels, a power of two, that need the fewest symbols, with what follows."""
    counts, most = _table(table)
    choices = [
        (1 / levels + float(counts[most + reach : -1].sum() * 2 / counts.sum()), -levels, reach)
        for levels in (_MOST_AT_ONCE, 4, 2, 1)
        for reach in range(1, min(most, _MOST_REACH) + 1)
        if levels <= size and (2 * reach + 1) ** levels <= _MOST_SYMBOLS
    ]
    _, levels, reach = min(choices)
    shares = counts[most - reach : most + reach + 1] / counts.sum()
    shares[0] = shares[-1] = (counts[most + reach : -1].sum() + counts[-1] / 2) / counts.sum()
    joint = shares
    for _ in range(-levels - 1):
        joint = np.multiply.outer(joint, shares)
    # An escape comes on either side.
    tail = np.append(counts[most + reach : -1], counts[-1] / 2)
    return _Symbols(-levels, reach, _categorical(joint.ravel()), _categorical(tail / tail.sum()), len(tail) - 1)


def _categorical(shares: NDArray[np.float64]) -> Any:
    return _model.Categorical(shares.astype(np.float32), perfect=False)


@lru_cache(maxsize=WIDEST - NARROWEST + 1)
def _table(width: int) -> tuple[NDArray[np.float64], int]:
    """How often each level comes, from the least to the largest and then the escape; and the largest level."""
    with localcontext(Context(prec=24)):
        scale = Decimal(2) ** (Decimal(width) / PER_DOUBLING)
        most = min(_MOST_LEVELS, int(scale * _REACH) + 2)
        narrow, wide = (_side(scale * times, most) for times in (1, _WIDER))
        side = [(1 - _TAIL) * one + _TAIL * other for one, other in zip(narrow, wide, strict=True)]
        shares = [*side[:0:-1], 2 * side[0], *side[1:], 1 - 2 * sum(side)]
        counts = np.array([max(1, int(share * _ROUNDED)) for share in shares], np.float64)
    return counts, most


def _side(scale: Decimal, most: int) -> list[Decimal]:
    """The shares of half of level 0 and of levels 1 to ``most``, for a Laplace of ``scale`` steps."""
    ends = [(-(Decimal(str(DEAD_ZONE)) + level) / scale).exp() / 2 for level in range(most + 1)]
    return [Decimal("0.5") - ends[0], *(nearer - further for nearer, further in pairwise(ends))]
