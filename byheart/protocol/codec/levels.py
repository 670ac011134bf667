"""Components as whole numbers of steps, coded one block of components after another.

A token whose first components are larger than most is likely to be so in the next ones too. So the width that a level
is coded with is the component's own, wider or narrower by what the token's components before it were: ``_Heat``. It is
counted in whole numbers, so that every machine reads what another wrote.

Dimensions: C components, T tokens, K components of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    expected,
)

UNITS = 16 * PER_DOUBLING
"""In which widths and steps are given, per doubling: a step is within half a percent of the best."""
_UNITS_PER_TABLE = UNITS // PER_DOUBLING
_BLOCK = 16

Levels = NDArray[np.int16]


def grid(widths: Tensor, step: int) -> Tables:
    """The tables (C,) of components; one under ``NARROWEST`` is not coded."""
    finer = (widths.cpu().numpy().astype(np.int64) - step + _UNITS_PER_TABLE // 2) // _UNITS_PER_TABLE
    return np.clip(finer, NARROWEST - 1, WIDEST).astype(np.int8)


def count_coded(tables: Tables) -> int:
    """How many components are coded: the first ones, since they stand in the order of their widths."""
    return int((tables >= NARROWEST).sum())


def finest_step(y: Float32[Tensor, "C T"]) -> int:
    """A step with which the largest number still has a level."""
    largest = max(float(y.abs().max()), torch.finfo(torch.float32).tiny)
    return math.ceil(math.log2(largest / LARGEST) * UNITS)


def to_levels(y: Float32[Tensor, "C T"], step: int) -> Int16[Tensor, "C T"]:
    """The nearest level of each number, nearer to 0 by the dead zone."""
    size = y.abs().mul_(1 / _size(step)).add_(1 - DEAD_ZONE).floor_().clamp_(max=LARGEST)
    return size.copysign_(y).to(torch.int16)


def count_bits(levels: Int16[Tensor, "C T"], tables: Tables) -> float:
    """How many bits levels take, before what heat saves."""
    coded = count_coded(tables)
    bits = torch.from_numpy(costs()[tables[:coded].astype(np.int16) - NARROWEST])
    return float(bits.gather(1, levels[:coded].abs().clamp(max=bits.shape[1] - 1).long()).sum())


def put_levels(coder: LevelEncoder, levels: Levels, tables: Tables) -> None:
    """Code levels (C, T), the components in order."""
    heat = _Heat(levels.shape[1])
    for block in _blocks(tables):
        coder.put(levels[block].ravel(), heat.tables(tables[block]).ravel())
        heat.add(levels[block], tables[block])


def take_levels(coder: LevelDecoder, tokens: int, tables: Tables) -> tuple[Levels, NDArray[np.int8]]:
    """Levels (C, T) of the components that were coded, and the table of each."""
    heat = _Heat(tokens)
    shape = count_coded(tables), tokens
    levels, used = np.empty(shape, np.int16), np.empty(shape, np.int8)
    for block in _blocks(tables):
        used[block] = heat.tables(tables[block])
        levels[block] = coder.take(used[block].ravel()).reshape(-1, tokens)
        heat.add(levels[block], tables[block])
    return levels, used


def from_levels(levels: Levels, used: NDArray[np.int8], step: int) -> Float[Tensor, "C T"]:
    """The mean of the numbers that have each level, by the Laplace distribution that it was coded with."""
    y = np.zeros(levels.shape, np.float32)
    places = np.flatnonzero(levels)
    found = levels.ravel()[places].astype(np.float32)
    inside = _means()[used.ravel()[places].astype(np.int16) - NARROWEST] - (1 - DEAD_ZONE)
    y.ravel()[places] = (found + np.copysign(inside, found)) * _size(step)
    return torch.from_numpy(y)


def _blocks(tables: Tables) -> Iterator[slice]:
    """Components that are coded at once."""
    coded = count_coded(tables)
    return (slice(start, min(start + _BLOCK, coded)) for start in range(0, coded, _BLOCK))


def _size(step: int) -> float:
    return float(2.0 ** (step / UNITS))


class _Heat:
    """How much larger a token's levels were than their tables say."""

    def __init__(self, tokens: int) -> None:
        self._seen = np.full(tokens, _PRIOR, np.int64)
        self._expected = _PRIOR

    def tables(self, tables: Tables) -> NDArray[np.int8]:
        """The tables (K, T) of the next components for each token."""
        shift = np.searchsorted(_BOUNDS, self._seen * _ONE // self._expected, side="right").astype(np.int16) - _REACH
        shifted: NDArray[np.int16] = np.clip(tables.astype(np.int16)[:, None] + shift, NARROWEST, WIDEST)
        return shifted.astype(np.int8)

    def add(self, levels: Levels, tables: Tables) -> None:
        """Take in components' levels (K, T)."""
        seen = np.minimum(np.abs(levels), _CUT).sum(0, dtype=np.int64) * _ONE
        self._seen += seen - (self._seen - _PRIOR) // _MEMORY
        awaited = sum(expected(table, _CUT, _ONE) for table in tables.tolist())
        self._expected += awaited - (self._expected - _PRIOR) // _MEMORY


_ONE = 1 << 10
_CUT, _MEMORY = 15, 4
_PRIOR = 8 * _ONE
# A token is taken for at most twice as large, or half as large, as others.
_REACH = PER_DOUBLING
_BOUNDS = np.array([round(_ONE * 2 ** ((shift + 0.5) / PER_DOUBLING)) for shift in range(-_REACH, _REACH)], np.int64)


@lru_cache(maxsize=1)
def _means() -> NDArray[np.float32]:
    """Where in its bin, in steps from the near end, the mean of a level above 0 lies, for each table."""
    scale = 2.0 ** (np.arange(NARROWEST, WIDEST + 1) / PER_DOUBLING)
    # 1 / r - 1 / (e^r - 1) with r = 1 / scale.
    return (scale - 1 / np.expm1(1 / scale)).astype(np.float32)
