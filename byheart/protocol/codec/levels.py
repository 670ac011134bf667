"""Components as whole numbers of steps, coded one block of components after another.

A token on which much depends is coded in finer steps than others: its numbers are larger by its shift, and so are the
widths that they are coded with. A token whose first components are larger than most is likely to be so in the next ones
too. So the width that a level is coded with is wider or narrower by what the token's components before it were:
``_Heat``. Both are whole numbers, so that every machine reads what another wrote.

Components stand in the order of their widths, so those of a block have nearly the same. In a block, the tokens whose
levels have the same table are coded together.

Dimensions: C components, T tokens, N tokens of a block, K components of a block.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Int16
from numpy.typing import NDArray
from torch import Tensor

from byheart.protocol.codec.entropy import (
    DEAD_ZONE,
    LARGEST,
    NARROWEST,
    PER_DOUBLING,
    WIDEST,
    LevelDecoder,
    LevelEncoder,
    costs,
    expectations,
)

UNITS = 16 * PER_DOUBLING
"""In which widths and steps are given, per doubling: a step is within half a percent of the best."""
_UNITS_PER_TABLE = UNITS // PER_DOUBLING
# A block is an eighth of the components before it, or smaller: among them, widths are nearly the same.
_SHARE, _LARGEST_BLOCK = 8, 64
MOST_SHIFT = 2 * PER_DOUBLING
"""A token's steps are at most four times finer, or coarser, than those of others."""
# Levels of so many tokens are made at once, which takes little memory beside them.
_PIECE = 256
# A component is left out if only tokens whose steps are finer by more than one doubling have it: about a tenth of them.
_RARE = PER_DOUBLING
# In a block, tokens share a table with those whose width is next to theirs.
_SHARING = 2

Levels = NDArray[np.int16]
Shifts = NDArray[np.int16]
"""Of each token, (T,): by how many tables its steps are finer."""
Table = NDArray[np.int16]


@dataclass(frozen=True)
class Block:
    """Components ``start`` to ``stop``, and the table of a token that is like others."""

    start: int
    stop: int
    table: int

    @property
    def components(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Grid:
    """With which table each block's components are coded, for tokens with these shifts."""

    blocks: tuple[Block, ...]
    shifts: Shifts

    @classmethod
    def of(cls, widths: Tensor, step: int, shifts: Shifts) -> Grid:
        """The tables of components of these widths, for a step; the last components may be left out."""
        most = min(int(shifts.max(initial=0)), _RARE)
        blocks: list[Block] = []
        for start, stop in _spans(len(widths)):
            width = int(widths[(start + stop) // 2])
            table = max(-1 << 14, min(1 << 14, (width - step + _UNITS_PER_TABLE // 2) // _UNITS_PER_TABLE))
            if table + most < NARROWEST:
                break
            blocks.append(Block(start, stop, table))
        return cls(tuple(blocks), shifts)

    @property
    def coded(self) -> int:
        """How many components are coded."""
        return self.blocks[-1].stop if self.blocks else 0

    def tables(self, block: Block) -> Table:
        """The table (T,) of each token; one below ``NARROWEST`` says that nothing is coded."""
        tables: Table = np.clip(block.table + self.shifts, NARROWEST - 1, WIDEST).astype(np.int16)
        return tables


def finest_step(y: Float[Tensor, "T C"], shifts: Shifts) -> int:
    """A step with which the largest number still has a level."""
    largest = torch.stack(y.aminmax(dim=1)).abs().amax(0).float() * torch.from_numpy(_factors(shifts))
    return math.ceil(math.log2(max(float(largest.max()), torch.finfo(torch.float32).tiny) / LARGEST) * UNITS)


def to_levels(y: Float[Tensor, "T C"], step: int, shifts: Shifts) -> Int16[Tensor, "T C"]:
    """The level of each number, once it was enlarged by its token's shift."""
    levels = torch.empty(y.shape, dtype=torch.int16)
    factors = torch.from_numpy(_factors(shifts) / _size(step))[:, None]
    for start in range(0, len(y), _PIECE):
        piece = slice(start, start + _PIECE)
        x = y[piece].float() * factors[piece]
        levels[piece] = x.abs().add_(1 - DEAD_ZONE).floor_().clamp_(max=LARGEST).copysign_(x)
    return levels


def shifts_of(importance: Float[Tensor, " T"]) -> Shifts:
    """Of tokens whose errors cost 2 to the ``importance``: steps as the root of it, about their mean."""
    finer = (importance - importance.mean()) * (PER_DOUBLING / 2)
    return finer.round().clamp(-MOST_SHIFT, MOST_SHIFT).numpy().astype(np.int16)


def count_bits(y: Float[Tensor, "T C"], step: int, grid: Grid) -> float:
    """How many bits the levels take, before what heat saves."""
    bits, total = costs(), 0.0
    levels = np.minimum(to_levels(y[:, : grid.coded], step, grid.shifts).abs().numpy(), bits.shape[1] - 1)
    for block in grid.blocks:
        rows = bits[grid.tables(block) - (NARROWEST - 1)]
        total += float(np.take_along_axis(rows, levels[:, block.components].astype(np.intp), 1).sum(dtype=np.float64))
    return total


def put_levels(coder: LevelEncoder, y: Float[Tensor, "T C"], step: int, grid: Grid) -> int:
    """Code the levels of ``y``; returns a checksum of them."""
    heat, levels = _Heat(grid), to_levels(y[:, : grid.coded], step, grid.shifts).numpy()
    for block in grid.blocks:
        tokens, cells = heat.cells(block)
        part = levels[tokens, block.components]
        for table, rows in cells:
            coder.put(part[rows], table)
        heat.add(block, tokens, part)
    return heat.checksum()


def take_levels(coder: LevelDecoder, step: int, grid: Grid) -> tuple[Float32[Tensor, "T C"], int]:
    """The numbers whose levels were coded, and the checksum.

    A level stands for the mean of the numbers that have it, by the Laplace distribution that it was coded with.
    """
    found = np.zeros((len(grid.shifts), grid.coded), np.float32)
    heat, means, scale = _Heat(grid), _means(), _size(step) / _factors(grid.shifts)
    for block in grid.blocks:
        tokens, cells = heat.cells(block)
        part = np.empty((len(tokens), block.stop - block.start), np.int16)
        inside = np.empty((len(tokens), 1), np.float32)
        for table, rows in cells:
            part[rows] = coder.take(rows.stop - rows.start, part.shape[1], table)
            inside[rows] = means[table - (NARROWEST - 1)]
        heat.add(block, tokens, part)
        size = part.astype(np.float32)
        found[tokens, block.components] = (size + inside * np.sign(size)) * scale[tokens, None]
    return torch.from_numpy(found), heat.checksum()


@lru_cache(maxsize=8)
def _spans(components: int) -> tuple[tuple[int, int], ...]:
    spans, start = [], 0
    while start < components:
        size = 1 << max(0, (start // _SHARE).bit_length() - 1)
        stop = min(components, start + min(size, _LARGEST_BLOCK))
        spans.append((start, stop))
        start = stop
    return tuple(spans)


def _factors(shifts: Shifts) -> NDArray[np.float32]:
    return np.exp2(shifts.astype(np.float32) / PER_DOUBLING)


def _size(step: int) -> float:
    return float(2.0 ** (step / UNITS))


class _Heat:
    """How much larger a token's levels were than their tables say."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._seen = np.full(len(grid.shifts), _PRIOR, np.int64)
        self._expected = np.full(len(grid.shifts), _PRIOR, np.int64)
        self._crc = 0

    def cells(self, block: Block) -> tuple[NDArray[np.intp], list[tuple[int, slice]]]:
        """The tokens (N,) of which a block is coded, by their tables, and where the tokens of each table stand."""
        tables = self._grid.tables(block)
        heat = np.searchsorted(_BOUNDS, self._seen * _ONE // self._expected, side="right") - _REACH
        used = np.clip((tables + heat + 1) // _SHARING * _SHARING, NARROWEST, WIDEST).astype(np.int8)
        used[tables < NARROWEST] = NARROWEST - 1
        order = np.argsort(used, kind="stable")
        counts = np.bincount(used.astype(np.int16) - (NARROWEST - 1))
        ends = np.cumsum(counts) - counts[0]
        rows = np.flatnonzero(counts[1:]).tolist()
        return order[counts[0] :], [(row + NARROWEST, slice(int(ends[row]), int(ends[row + 1]))) for row in rows]

    def add(self, block: Block, tokens: NDArray[np.intp], levels: Levels) -> None:
        """Take in the levels (N, K) of a block's ``tokens``."""
        size = block.stop - block.start
        seen = np.minimum(np.abs(levels), _CUT).sum(1, dtype=np.int64) * _ONE
        awaited = expectations(_CUT, _ONE)[self._grid.tables(block)[tokens] - (NARROWEST - 1)] * size
        self._seen -= (self._seen - _PRIOR) * size // (size + _MEMORY)
        self._expected -= (self._expected - _PRIOR) * size // (size + _MEMORY)
        self._seen[tokens] += seen
        self._expected[tokens] += awaited
        self._crc = zlib.crc32(levels.astype("<i2", order="C", copy=False).tobytes(), self._crc)

    def checksum(self) -> int:
        """Of all levels so far."""
        return self._crc


_ONE = 1 << 10
_CUT, _MEMORY = 15, 96
_PRIOR = 8 * _ONE
# A token is taken for at most twice as large, or half as large, as others.
_REACH = PER_DOUBLING
_BOUNDS = np.array([round(_ONE * 2 ** ((shift + 0.5) / PER_DOUBLING)) for shift in range(-_REACH, _REACH)], np.int64)


@lru_cache(maxsize=1)
def _means() -> NDArray[np.float32]:
    """How far from a level above 0 the mean of its numbers lies, in steps, for each table; the first codes nothing."""
    scale = 2.0 ** (np.arange(NARROWEST - 1, WIDEST + 1) / PER_DOUBLING)
    # From the near end of a bin it is 1 / r - 1 / (e^r - 1) with r = 1 / scale.
    return (scale - 1 / np.expm1(1 / scale) - (1 - DEAD_ZONE)).astype(np.float32)
