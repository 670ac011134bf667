"""What a frozen model sees of a state: a KV prefix, changes of linear layers, or both.

A reading is a value: making or using one changes no weight, so rows of one batch can read different memories.
It does not know which method made it, nor the model that will read it.

Dimensions: B batch, H key-value heads, M slots of memory, K slots that are chosen, W head width, R rank, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn


@dataclass(frozen=True)
class KV:
    """Keys and values of every layer, (B, H, M, W) each; keys are rotated, the next token sits at position M.

    ``masks``: True where a key-value head sees a slot, one of every layer; empty where all heads see all slots. Codes
    of keys and values, which are integers, are handled the same way before they are decoded.
    """

    keys: tuple[Num[Tensor, "B H M W"], ...]
    values: tuple[Num[Tensor, "B H M W"], ...]
    masks: tuple[Bool[Tensor, "B H M"], ...] = ()

    @property
    def batch(self) -> int:
        """Rows of the batch, B."""
        return self.keys[0].shape[0]

    @property
    def slots(self) -> int:
        """Slots of memory, M."""
        return self.keys[0].shape[2]

    def rows(self) -> list[KV]:
        """One KV per batch row, as views."""
        return [self._part(itemgetter(slice(b, b + 1))) for b in range(self.batch)]

    def slice(self, start: int, stop: int | None = None) -> KV:
        """The slots from ``start`` to ``stop``, as views."""
        return self._part(lambda part: part[:, :, start:stop])

    def gather(self, indices: Sequence[Int[Tensor, "B H K"]]) -> KV:
        """The slots at the indices of each layer and head."""

        def take(part: Tensor, index: Tensor) -> Tensor:
            return part.gather(2, index[..., None].expand(-1, -1, -1, part.shape[3]))

        masks = tuple(mask.gather(2, index) for mask, index in zip(self.masks, indices, strict=bool(self.masks)))
        return KV(tuple(map(take, self.keys, indices)), tuple(map(take, self.values, indices)), masks)

    def append(self, other: KV) -> KV:
        """These slots, then those of ``other``."""
        joined = map_slots(lambda *pair: torch.cat(pair, dim=2), self, other)
        if not (self.masks or other.masks):
            return joined
        masks = zip(self.masks or self._seen(), other.masks or other._seen(), strict=True)
        return KV(joined.keys, joined.values, tuple(torch.cat(pair, dim=2) for pair in masks))

    def to(self, device: torch.device) -> KV:
        """The same slots on a device."""
        return self._part(lambda part: part.to(device))

    def _part(self, function: Callable[[Tensor], Tensor]) -> KV:
        """What ``function`` takes out of each tensor, masks too."""
        return KV(*(tuple(map(function, parts)) for parts in (self.keys, self.values, self.masks)))

    def _seen(self) -> list[Tensor]:
        """Masks that hide nothing."""
        return [torch.ones(part.shape[:3], dtype=torch.bool, device=part.device) for part in self.keys]


def map_slots(function: Callable[..., Tensor], *kvs: KV) -> KV:
    """``function`` of the tensors (B, H, M, W) that these have in the same layer, for keys and for values; no masks."""
    return KV(tuple(map(function, *(kv.keys for kv in kvs))), tuple(map(function, *(kv.values for kv in kvs))))


@dataclass(frozen=True)
class DenseDelta:
    """Adds ``x @ weight.T`` to a linear layer's output; one weight per batch row."""

    weight: Float[Tensor, "B out in"]

    def __call__(self, x: Tensor, row: int) -> Tensor:
        return torch.nn.functional.linear(x, self.weight[row].to(x.dtype))

    def row(self, b: int) -> DenseDelta:
        """The change of one batch row."""
        return DenseDelta(self.weight[b : b + 1])

    def to(self, dtype: torch.dtype) -> DenseDelta:
        """The same change in another type."""
        return DenseDelta(self.weight.to(dtype))


@dataclass(frozen=True)
class LowRankDelta:
    """Adds ``x @ down.T @ up.T`` to a linear layer's output; the scale is in ``up``. One pair per batch row."""

    down: Float[Tensor, "B R in"]
    up: Float[Tensor, "B out R"]

    def __call__(self, x: Tensor, row: int) -> Tensor:
        inner = torch.nn.functional.linear(x, self.down[row].to(x.dtype))
        return torch.nn.functional.linear(inner, self.up[row].to(x.dtype))

    def row(self, b: int) -> LowRankDelta:
        """The change of one batch row."""
        return LowRankDelta(self.down[b : b + 1], self.up[b : b + 1])

    def to(self, dtype: torch.dtype) -> LowRankDelta:
        """The same change in another type."""
        return LowRankDelta(self.down.to(dtype), self.up.to(dtype))


Delta: TypeAlias = DenseDelta | LowRankDelta


@dataclass(frozen=True)
class Reading:
    """What a frozen model sees of a state.

    ``prefix``: slots that stand before the text, or None. ``deltas``: module path of a linear layer -> its change.
    ``batch``: how many batch rows it serves.
    """

    prefix: KV | None = None
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    batch: int = 1

    def rows(self) -> list[Reading]:
        """One reading per batch row."""
        if self.batch == 1:
            return [self]
        prefixes: Sequence[KV | None] = self.prefix.rows() if self.prefix else [None] * self.batch
        return [
            Reading(prefix, {path: delta.row(b) for path, delta in self.deltas.items()})
            for b, prefix in enumerate(prefixes)
        ]

    def to(self, device: torch.device) -> Reading:
        """The same prefix on a device. Raises ValueError for a reading with changes of layers."""
        if self.deltas:
            raise ValueError("only a prefix can be moved")
        return replace(self, prefix=self.prefix and self.prefix.to(device))

    @property
    def slots(self) -> int:
        """Slots of the prefix; 0 without one."""
        return self.prefix.slots if self.prefix else 0

    @property
    def bytes(self) -> int:
        """Bytes of the tensors it holds."""
        slots = self.prefix.keys + self.prefix.values + self.prefix.masks if self.prefix else ()
        changes = [part for delta in self.deltas.values() for part in vars(delta).values()]
        return sum(tensor.nbytes for tensor in (*slots, *changes))


def cast(rows: Sequence[Mapping[str, Delta]], dtype: torch.dtype) -> list[dict[str, Delta]]:
    """Each batch row's changes in ``dtype``; those that several share are converted once and stay shared.

    Rows that share a change go through one product with it.
    """
    originals = {id(delta): delta for row in rows for delta in row.values()}
    converted = {key: delta.to(dtype) for key, delta in originals.items()}
    return [{path: converted[id(delta)] for path, delta in row.items()} for row in rows]


def delta_hook(rows: Sequence[Delta | None]) -> Callable[..., Tensor]:
    """A forward hook that adds each batch row's change to a linear layer's output.

    Adjacent rows that share a change go through one product: questions about one text read its weights once.
    """
    runs = [list(run) for _, run in groupby(rows, key=id)]
    if len(runs) == 1 and rows[0] is not None:
        shared = rows[0]
        return lambda module, args, out: out + shared(args[0], 0)
    low_rank = [row for row in rows if isinstance(row, LowRankDelta)]
    if len(low_rank) == len(rows) and len({row.down.shape for row in low_rank}) == 1:
        down, up = torch.cat([row.down for row in low_rank]).mT, torch.cat([row.up for row in low_rank]).mT
        return lambda module, args, out: out + torch.bmm(torch.bmm(args[0], down), up)
    counts = [len(run) for run in runs]

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        parts = zip(runs, torch.split(args[0], counts), torch.split(out, counts), strict=True)
        return torch.cat([y + run[0](x, 0) if run[0] else y for run, x, y in parts])

    return hook
