"""Components as whole numbers of steps, coded one block of components after another.

A token on which much depends is coded in finer steps than others: its numbers are larger by its shift, and so are the
widths that they are coded with. A token whose first components are larger than most is likely to be so in the next ones
too. So the width that a level is coded with is wider or narrower by what the token's components before it were:
``_Heat``. Both are whole numbers, so that every machine reads what another wrote.

Dimensions: C components, T tokens, K components of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    Tables,
    costs,
    expectations,
)

UNITS = 16 * PER_DOUBLING
"""In which widths and steps are given, per doubling: a step is within half a percent of the best."""
_UNITS_PER_TABLE = UNITS // PER_DOUBLING
_BLOCK = 32
MOST_SHIFT = 2 * PER_DOUBLING
"""A token's steps are at most four times finer, or coarser, than those of others."""

Levels = NDArray[np.int16]
Shifts = NDArray[np.int16]
"""Of each token, (T,): by how many tables its steps are finer."""


@dataclass(frozen=True)
class Grid:
    """With which table each component (C,) of each token (T,) is coded; under ``NARROWEST`` it is not.

    ``tables`` are those of a token that is like others. Only the first ``coded`` components are coded at all, since
    they stand in the order of their widths.
    """

    tables: NDArray[np.int16]
    shifts: Shifts

    @classmethod
    def of(cls, widths: Tensor, step: int, shifts: Shifts) -> Grid:
        """The tables of components of these widths, for a step."""
        finer = (widths.cpu().numpy().astype(np.int64) - step + _UNITS_PER_TABLE // 2) // _UNITS_PER_TABLE
        coded = int((finer + int(shifts.max(initial=0)) >= NARROWEST).sum())
        return cls(np.clip(finer[:coded], -1 << 14, 1 << 14).astype(np.int16), shifts)

    @property
    def coded(self) -> int:
        """How many components are coded."""
        return len(self.tables)

    def part(self, components: slice) -> Tables:
        """The tables (K, T) of some components."""
        own: NDArray[np.int16] = np.clip(self.tables[components, None] + self.shifts, NARROWEST - 1, WIDEST)
        return own.astype(np.int8)


def enlarge(y: Float32[Tensor, "C T"], shifts: Shifts) -> Float32[Tensor, "C T"]:
    """Each token's numbers, larger by its shift."""
    return y * torch.from_numpy(_factors(shifts))


def finest_step(y: Float32[Tensor, "C T"]) -> int:
    """A step with which the largest number still has a level."""
    largest = max(float(y.abs().max()), torch.finfo(torch.float32).tiny)
    return math.ceil(math.log2(largest / LARGEST) * UNITS)


def to_levels(y: Float32[Tensor, "C T"], step: int) -> Int16[Tensor, "C T"]:
    """The nearest level of each number, nearer to 0 by the dead zone."""
    size = y.abs().mul_(1 / _size(step)).add_(1 - DEAD_ZONE).floor_().clamp_(max=LARGEST)
    return size.copysign_(y).to(torch.int16)


def shifts_of(importance: Float[Tensor, " T"]) -> Shifts:
    """Of tokens whose errors cost 2 to the ``importance``: steps as the root of it, about their mean."""
    finer = (importance - importance.mean()) * (PER_DOUBLING / 2)
    return finer.round().clamp(-MOST_SHIFT, MOST_SHIFT).numpy().astype(np.int16)


def count_bits(levels: Levels, grid: Grid) -> float:
    """How many bits levels take, before what heat saves."""
    bits = costs()
    sizes = np.minimum(np.abs(levels), bits.shape[1] - 1)
    return float(bits[grid.part(slice(None)).astype(np.int16) - (NARROWEST - 1), sizes].sum(dtype=np.float64))


def coded_levels(y: Float32[Tensor, "C T"], step: int, grid: Grid) -> Levels:
    """The levels that are coded; 0 where a token's component is not."""
    levels = to_levels(y[: grid.coded], step).numpy()
    levels[grid.part(slice(None)) < NARROWEST] = 0
    return levels


def put_levels(coder: LevelEncoder, levels: Levels, grid: Grid) -> None:
    """Code levels (C, T), the components in order."""
    heat = _Heat(levels.shape[1])
    for block in _blocks(grid):
        tables = grid.part(block)
        coder.put(levels[block].ravel(), heat.tables(tables).ravel())
        heat.add(levels[block], tables)


def take_levels(coder: LevelDecoder, grid: Grid) -> tuple[Levels, Tables]:
    """Levels (C, T) of the components that were coded, and the table of each."""
    tokens = len(grid.shifts)
    heat = _Heat(tokens)
    levels, used = np.empty((grid.coded, tokens), np.int16), np.empty((grid.coded, tokens), np.int8)
    for block in _blocks(grid):
        tables = grid.part(block)
        used[block] = heat.tables(tables)
        levels[block] = coder.take(used[block].ravel()).reshape(-1, tokens)
        heat.add(levels[block], tables)
    return levels, used


def from_levels(levels: Levels, used: Tables, step: int, shifts: Shifts) -> Float[Tensor, "C T"]:
    """The mean of the numbers that have each level, by the Laplace distribution that it was coded with.

    They are as large again as before ``enlarge``.
    """
    found = torch.from_numpy(levels).float()
    inside = torch.from_numpy(_means())[torch.from_numpy(used).int() - (NARROWEST - 1)] * found.sign()
    return found.add_(inside).mul_(torch.from_numpy(_size(step) / _factors(shifts)))


def _blocks(grid: Grid) -> Iterator[slice]:
    """Components that are coded at once."""
    return (slice(start, min(start + _BLOCK, grid.coded)) for start in range(0, grid.coded, _BLOCK))


def _factors(shifts: Shifts) -> NDArray[np.float32]:
    return np.exp2(shifts.astype(np.float32) / PER_DOUBLING)


def _size(step: int) -> float:
    return float(2.0 ** (step / UNITS))


class _Heat:
    """How much larger a token's levels were than their tables say."""

    def __init__(self, tokens: int) -> None:
        self._seen = np.full(tokens, _PRIOR, np.int64)
        self._expected = np.full(tokens, _PRIOR, np.int64)

    def tables(self, tables: Tables) -> Tables:
        """The next components' tables (K, T), wider or narrower for each token."""
        shift = np.searchsorted(_BOUNDS, self._seen * _ONE // self._expected, side="right").astype(np.int16) - _REACH
        shifted: NDArray[np.int16] = np.clip(tables.astype(np.int16) + shift, NARROWEST, WIDEST)
        return np.where(tables < NARROWEST, tables, shifted).astype(np.int8)

    def add(self, levels: Levels, tables: Tables) -> None:
        """Take in components' levels (K, T), which these tables let expect."""
        seen = np.minimum(np.abs(levels), _CUT).sum(0, dtype=np.int64) * _ONE
        self._seen += seen - (self._seen - _PRIOR) // _MEMORY
        awaited = expectations(_CUT, _ONE)[tables.astype(np.int16) - (NARROWEST - 1)].sum(0)
        self._expected += awaited - (self._expected - _PRIOR) // _MEMORY


_ONE = 1 << 10
_CUT, _MEMORY = 15, 4
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
