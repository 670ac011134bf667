"""Components as whole numbers of steps, coded one block of components after another.

A token whose first components are larger than most is likely to be so in the next ones too. So the width that a level
is coded with is the component's own, wider or narrower by what the token's components before it were: ``_Heat``. It is
counted in whole numbers, so that every machine reads what another wrote.

Dimensions: T tokens, C components.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from byheart.protocol.codec.entropy import (
    DEAD_ZONE,
    LARGEST,
    NARROWEST,
    PER_DOUBLING,
    WIDEST,
    Ints,
    LevelDecoder,
    LevelEncoder,
    costs,
    expected,
)

UNITS = 16 * PER_DOUBLING
"""In which widths and steps are given, per doubling: a step is within half a percent of the best."""


def grid(widths: Int[Tensor, " C"], step: int) -> Ints:
    """The tables (C,) of components; under ``NARROWEST`` a component is not coded."""
    finer = (widths.cpu().numpy().astype(np.int64) - step + UNITS // PER_DOUBLING // 2) // (UNITS // PER_DOUBLING)
    return np.minimum(finer, WIDEST).astype(np.int32)


def to_levels(y: Float[Tensor, "T C"], step: int) -> Int[Tensor, "T C"]:
    """The nearest level of each number, nearer to 0 by the dead zone."""
    size = (y.abs() / _size(step) + (1 - DEAD_ZONE)).floor().clamp(max=LARGEST)
    return (size * y.sign()).to(torch.int32)


def count_bits(levels: Int[Tensor, "T C"], tables: Ints) -> float:
    """How many bits levels take, before what heat saves."""
    coded = tables >= NARROWEST
    bits = torch.from_numpy(costs())
    rows = torch.from_numpy(tables[coded] - NARROWEST).long()
    most = bits.shape[1] - 1
    return float(bits[rows, levels[:, torch.from_numpy(coded)].abs().clamp(max=most).long()].sum())


def put_levels(coder: LevelEncoder, levels: Int[Tensor, "T C"], tables: Ints) -> None:
    """Code levels."""
    columns, heat = levels.T.contiguous().cpu().numpy(), _Heat(len(levels))
    for block in _blocks(tables):
        coder.put(columns[block].ravel(), heat.tables(tables[block]).ravel())
        heat.add(columns[block], tables[block])


def take_levels(coder: LevelDecoder, tokens: int, tables: Ints) -> tuple[Int[Tensor, "T C"], Int[Tensor, "T C"]]:
    """Levels as they were coded, and the tables of each."""
    heat = _Heat(tokens)
    levels, used = np.zeros((len(tables), tokens), np.int32), np.full((len(tables), tokens), NARROWEST, np.int32)
    for block in _blocks(tables):
        used[block] = heat.tables(tables[block])
        levels[block] = coder.take(used[block].ravel()).reshape(-1, tokens)
        heat.add(levels[block], tables[block])
    return torch.from_numpy(levels.T), torch.from_numpy(used.T)


def _blocks(tables: Ints) -> Iterator[NDArray[np.intp]]:
    """Components that are coded, so many at once."""
    coded = np.flatnonzero(tables >= NARROWEST)
    return (coded[start : start + _BLOCK] for start in range(0, len(coded), _BLOCK))


def from_levels(levels: Int[Tensor, "T C"], used: Int[Tensor, "T C"], step: int) -> Float[Tensor, "T C"]:
    """The mean of the numbers that have each level, by the Laplace distribution that it was coded with."""
    inside = torch.from_numpy(_means())[used.long() - NARROWEST]
    size = levels.abs().float() - (1 - DEAD_ZONE) + inside
    return torch.where(levels == 0, 0.0, size * levels.sign()) * _size(step)


def _size(step: int) -> float:
    return float(2.0 ** (step / UNITS))


class _Heat:
    """How much larger a token's levels were than their tables say."""

    def __init__(self, tokens: int) -> None:
        self._seen = np.full(tokens, _PRIOR, np.int64)
        self._expected = _PRIOR

    def tables(self, tables: Ints) -> NDArray[np.int32]:
        """The tables (C, T) of the next components for each token."""
        shift = np.searchsorted(_BOUNDS, self._seen * _ONE // self._expected, side="right") - _REACH
        return np.clip(tables[:, None] + shift, NARROWEST, WIDEST).astype(np.int32)

    def add(self, levels: NDArray[np.int32], tables: Ints) -> None:
        """Take in components' levels (C, T)."""
        seen = np.minimum(np.abs(levels), _CUT).sum(0, dtype=np.int64) * _ONE
        self._seen += seen - (self._seen - _PRIOR) // _MEMORY
        awaited = sum(expected(table, _CUT, _ONE) for table in tables.tolist())
        self._expected += awaited - (self._expected - _PRIOR) // _MEMORY


_ONE = 1 << 10
_CUT, _MEMORY, _BLOCK = 15, 4, 16
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
