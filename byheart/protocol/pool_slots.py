"""Where the slots of a pool are stored, and in which order of age: a new slot takes the place of a dropped one.

A place is a slot's position from 1, the oldest; slot 0 of the keys and values is the pool's first, which stays.

Dimensions: B batch, L layers, H heads, M slots, K new slots, W head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from byheart.model.reading import KV


def other_positions(place: Tensor, kept: Tensor, dropped: int) -> Tensor:
    """The positions (from 0) that are not in ``kept``, (B, L, dropped)."""
    batch, layers, slots = place.shape
    stays = place.new_zeros(layers, slots).scatter(1, kept.to(place.device).expand(layers, -1), 1).bool()
    return (~stays).nonzero()[:, 1].view(layers, dropped).expand(batch, -1, -1)


def assign_slots(place: Tensor, gone: Tensor, new: int) -> tuple[Tensor, Tensor]:
    """Where (B, L, new) new slots are stored, and every slot's position afterwards."""
    batch, layers, slots = place.shape
    order = place.argsort(dim=2)
    freed = torch.take_along_dim(order, gone, dim=2)
    added = torch.arange(slots, slots + new - gone.shape[2], device=place.device).expand(batch, layers, -1)
    stored = torch.cat([freed, added], dim=2)
    is_gone = place.new_zeros(batch, layers, slots).scatter(2, gone, 1)
    below = is_gone.cumsum(2)
    moved = place - torch.take_along_dim(below, place - 1, dim=2)
    moved = torch.cat([moved, moved.new_zeros(batch, layers, added.shape[2])], dim=2)
    first = slots - gone.shape[2] + 1
    newest = torch.arange(first, first + new, device=place.device)
    return stored, moved.scatter(2, stored, newest.expand(batch, layers, -1))


def replace_slots(kv: KV, new: KV, slots: Tensor) -> KV:
    """``kv`` with new slots (B, H, K, W) stored at ``slots`` (B, L, K); those past the end lengthen it."""
    length = max(kv.slots, int(slots.max()) + 1)

    def put(old: Tensor, fresh: Tensor, where: Tensor) -> Tensor:
        out = old.new_empty(*old.shape[:2], length, old.shape[3])
        out[:, :, : old.shape[2]] = old
        for b in range(old.shape[0]):
            out[b, :, where[b]] = fresh[b]
        return out

    layers = slots.unbind(1)
    return KV(tuple(map(put, kv.keys, new.keys, layers)), tuple(map(put, kv.values, new.values, layers)))


def newest_slots(kv: KV, place: Tensor, newest: int, before: int) -> KV:
    """The first slot, and the ``before`` oldest of the ``newest`` slots, in order."""
    order = place.argsort(dim=2)[:, :, place.shape[2] - newest :][:, :, :before] + 1
    order = torch.cat([order.new_zeros(*order.shape[:2], 1), order], dim=2)

    def take(part: Tensor, where: Tensor) -> Tensor:
        rows = [row[:, places] for row, places in zip(part, where, strict=True)]
        return rows[0][None] if len(rows) == 1 else torch.stack(rows)

    layers = order.unbind(1)
    return KV(tuple(map(take, kv.keys, layers)), tuple(map(take, kv.values, layers)))
