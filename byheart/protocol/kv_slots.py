"""Slots: the keys and values that a method keeps, one pair per head and layer, and how they are handled.

Nothing here knows which slots a method keeps, nor why.

Dimensions: B batch, H key-value heads, M slots, K slots that are kept, W head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.model.backbone import Backbone
from byheart.model.reading import KV, map_slots as map_slots
from byheart.protocol.state import State

_NAMES = ("keys", "values")


def concat(past: KV | None, new: KV) -> KV:
    """The slots of ``past``, if any, and then those of ``new``."""
    return past.append(new) if past else new


def rotate_to_slots(backbone: Backbone, kv: KV) -> KV:
    """Un-rotated slots, rotated to positions 0 to M - 1."""
    return backbone.rotate(kv, torch.arange(kv.slots, device=kv.keys[0].device))


@torch.no_grad()
def prefill_pieces(backbone: Backbone, pieces: Iterable[Int[Tensor, "B _"]], past: KV | None) -> KV | None:
    """The slots of ``past`` and of a text that the model reads after them, piece by piece; keys are rotated."""
    for piece in pieces:
        past = concat(past, backbone.prefill(piece, past))
    return past


def top_indices(scores: Float[Tensor, "B H M"], slots: int, *, sinks: int = 0, recent: int = 0) -> Int[Tensor, "B H K"]:
    """Which ``slots`` slots have the highest scores, in order; the first and the last are always among them.

    Args:
        sinks, recent: how many first and last slots are kept whatever their scores.
    """
    scores, length = scores.float(), scores.shape[2]
    place = torch.arange(length, device=scores.device)
    scores = scores.masked_fill((place < sinks) | (place >= length - recent), math.inf)
    return scores.topk(min(slots, length)).indices.sort().values


def gather(kv: KV, indices: Sequence[Int[Tensor, "B H K"]]) -> KV:
    """The slots of ``kv`` at the indices of each layer and head."""
    return kv.gather(indices)


def kv_to_state(kv: KV, names: tuple[str, str] = _NAMES) -> dict[str, Tensor]:
    """Keys and values as tensors of a state, ``keys.0``, ``values.0`` and so on, or by other names."""
    return {
        f"{name}.{index}": tensor
        for name, tensors in zip(names, (kv.keys, kv.values), strict=True)
        for index, tensor in enumerate(tensors)
    }


def state_to_kv(state: State, names: tuple[str, str] = _NAMES) -> KV | None:
    """The keys and values in a state, or None where it has none."""
    layers = sum(name.startswith(f"{names[0]}.") for name in state)
    if layers == 0:
        return None
    return KV(*(tuple(state[f"{name}.{index}"] for index in range(layers)) for name in names))
