"""Memories that stay where they are while many rows read them: no copy for each reader, and each slot read once.

A cache of this kind holds the rows' own tokens alone. What stands before them travels on the keys that it gives out, as
head masks do, and attention looks at both and weighs the two results by how much each one's keys were given:

    row | its memory     | its own tokens
     0  | A (M slots)    | 4
     1  | A, the same    | 9
     2  | B (other M)    | 2

Rows join and leave at the cost of their own tokens. Dimensions: B batch, R rows that share a memory, H key-value heads,
G query heads for each, T queries, M slots, W head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.model.kv_cache import PrefixCache
from byheart.model.observed_attention import causal_mask
from byheart.model.reading import KV, Reading, map_slots

_NAME = "_byheart_shared_prefix"


@dataclass(frozen=True)
class Shared:
    """A memory and the rows of the batch that read it."""

    kv: KV
    rows: list[int]


@dataclass(frozen=True)
class Before:
    """What stands before the tokens of a layer's cache; ``places`` (B, T) are the positions of the queries."""

    layer: int
    shared: Sequence[Shared]
    places: Int[Tensor, "B T"]


class SharedPrefixCache(PrefixCache):
    """A cache whose rows read memories that it does not hold.

    It is for models that run on byheart's attention.
    """

    def __init__(self, readings: Sequence[Reading], *, layers: int, dtype: torch.dtype) -> None:
        super().__init__(layers)
        self._prefixes = [_in_dtype(reading.prefix, dtype) for reading in readings]
        self._shared: list[Shared] | None = None
        self._places = torch.zeros(len(readings), 0, dtype=torch.long)

    def step(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """As of any cache; the mask is that of the rows' own tokens, the positions are after their memories."""
        seen, positions = super().step(x, mask)
        slots = [prefix.slots if prefix else 0 for prefix in self._prefixes]
        self._places = positions + torch.tensor(slots, device=x.device)[:, None]
        return seen, self._places

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append and return the rows' own slots; on the keys goes what stands before them."""
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self._shared is None:
            self._shared = self._group()
        if self._shared:
            setattr(keys, _NAME, Before(layer_idx, self._shared, self._places))
        return keys, values

    def drop(self, row: int) -> None:
        """Leave out a row of the batch: the last one takes its place."""
        super().drop(row)
        self._prefixes[row] = self._prefixes[-1]
        self._prefixes.pop()
        self._shared = None

    def join(self, other: PrefixCache) -> None:
        """Take in the rows of another cache of this kind; no memory is copied."""
        if not isinstance(other, SharedPrefixCache):
            raise TypeError("only caches of one kind can be joined")
        super().join(other)
        self._prefixes += other._prefixes
        self._shared = None

    def _group(self) -> list[Shared]:
        """Each memory once, with its rows."""
        rows: dict[int, list[int]] = {}
        for row, prefix in enumerate(self._prefixes):
            if prefix is not None and prefix.slots:
                rows.setdefault(id(prefix), []).append(row)
        some = [(self._prefixes[each[0]], each) for each in rows.values()]
        return [Shared(kv, each) for kv, each in some if kv is not None]


def saves_copies(readings: Sequence[Reading]) -> bool:
    """Whether rows that read the same memory do so at less cost than from copies of it.

    On a GPU they may not: attention to a shared memory holds the scores of all queries at once.
    """
    read = [reading.prefix for reading in readings if reading.prefix is not None and reading.slots]
    return len(set(map(id, read))) < len(read) and read[0].keys[0].device.type == "cpu"


def before(keys: Tensor) -> Before | None:
    """What stands before keys that a cache gave out, where it is not among them."""
    # Not of a family: keys that the cache gave out may carry it.
    found: Before | None = getattr(keys, _NAME, None)
    return found


def attend_after(
    ahead: Before,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention over memories and what follows them; arguments and result as in ``attention.grouped_attention``.

    Args:
        window: how far back a query sees.
    """
    batch, heads, rows, _ = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(batch, key.shape[1], groups * rows, -1)
    if mask is None and rows > 1:
        mask = causal_mask(query, key)
    if mask is not None:
        mask = _as_scores(mask[..., : key.shape[2]], query.dtype)
        mask = mask[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)
    out, given = attend_and_weigh(folded, key, value, mask, scaling=scaling, softcap=softcap)
    found = [_attend_shared(shared, ahead, folded, groups, window, scaling, softcap) for shared in ahead.shared]
    theirs, weight = found[0] if len(found) == 1 else (torch.cat(parts) for parts in zip(*found, strict=True))
    which = [row for shared in ahead.shared for row in shared.rows]
    if which == list(range(batch)):
        # Most often: all rows read a memory, and stand in the order of their memories.
        out = _merge(out, given, theirs, weight)
    else:
        out[which] = _merge(out[which], given[which], theirs, weight)
    return out.view(batch, heads, rows, -1).transpose(1, 2).contiguous()


def _merge(out: Tensor, given: Tensor, theirs: Tensor, weight: Tensor) -> Tensor:
    """Two results of attention as one over all their keys, by what was given to each one's."""
    share = torch.sigmoid(weight - given)[..., None]
    return torch.lerp(out.float(), theirs.float(), share).to(out.dtype)


def _attend_shared(
    shared: Shared,
    ahead: Before,
    folded: Tensor,
    groups: int,
    window: int | None,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """What the rows of one memory take from it, (R, H, G * T, W), and what they give to it, (R, H, G * T)."""
    keys, values = shared.kv.keys[ahead.layer], shared.kv.values[ahead.layer]
    seen = _seen(shared.kv, ahead, shared.rows, groups, window)
    mask = None if seen is None else _as_scores(seen, folded.dtype)
    if len(shared.rows) == 1:
        row = shared.rows[0]
        return attend_and_weigh(folded[row : row + 1], keys, values, mask, scaling=scaling, softcap=softcap)
    # The rows of one memory are more queries of one row.
    queries = folded[shared.rows].transpose(0, 1)
    parts = attend_and_weigh(queries.flatten(1, 2)[None], keys, values, mask, scaling=scaling, softcap=softcap)
    theirs, weight = (part[0].reshape(*queries.shape[:3], *part.shape[3:]).transpose(0, 1) for part in parts)
    return theirs, weight


def attend_and_weigh(
    query: Float[Tensor, "B H T W"],
    key: Float[Tensor, "B H M W"],
    value: Float[Tensor, "B H M W"],
    mask: Float[Tensor, "b h t M"] | None,
    *,
    scaling: float,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "B H T W"], Float[Tensor, "B H T"]]:
    """What queries take from keys, and the logarithm of what they give to all of these, unnormalised, in float32."""
    if query.device.type == "cpu" and softcap is None:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, weight = kernel(query, key, value, attn_mask=mask, scale=scaling)
        return out, weight.float()
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    weight = scores.logsumexp(-1)
    return torch.matmul((scores - weight[..., None]).exp().to(value.dtype), value), weight


def _seen(kv: KV, ahead: Before, rows: list[int], groups: int, window: int | None) -> Tensor | None:
    """Which slots the queries of the rows see, (1, H or 1, R * G * T or 1, M); None where it is all of them."""
    seen = kv.masks[ahead.layer][:, :, None] if kv.masks else None
    if window is None or int((places := ahead.places[rows]).max()) < window:
        return seen
    near = places[..., None] - torch.arange(kv.slots, device=places.device) < window
    near = near[:, None].expand(-1, groups, -1, -1).reshape(1, 1, -1, kv.slots)
    return near if seen is None else near & seen


def _as_scores(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to scores: 0 where a boolean ``mask`` is True, else the least number."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def _in_dtype(prefix: KV | None, dtype: torch.dtype) -> KV | None:
    """The same memory in a model's type, and the same object where it is in it already."""
    if prefix is None or all(part.dtype == dtype for part in (*prefix.keys, *prefix.values)):
        return prefix
    cast = map_slots(lambda part: part.to(dtype), prefix)
    return KV(cast.keys, cast.values, prefix.masks)
