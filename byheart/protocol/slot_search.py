"""Slots that a prompt finds: each has an address, and those whose addresses fit the prompt's queries are read.

This is the retriever of M+ (Wang et al. 2025, arXiv 2502.00592, section 3.2.2) as it was released: two projectors per
layer, and the mean over the prompt's rows of a sigmoid of query and address. Nothing here knows where slots come from.

Dimensions: B batch, L layers, H key-value heads, M slots, K slots that are chosen, T tokens of a prompt, D hidden,
P numbers of an address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from byheart.model.reading import KV, map_slots
from byheart.protocol.kv_slots import kv_to_state, state_to_kv
from byheart.protocol.state import State

_SPREAD, _EPSILON, _NORM_EPSILON, _QUERY_TOKENS = 0.02, 1e-5, 1e-5, 64


class Projector(nn.Module):
    """Turns hidden states at a layer's input into queries or addresses: a norm and two matrices for each layer.

    The published one has the layer's own norm before it. Here its weight is part of the first matrix, so that models
    without such a norm have a projector too. In float32, whatever the model's type is.

    Args:
        silent: start with an outer matrix of zeros: all slots then fit every prompt alike.
    """

    def __init__(self, layers: int, dim: int, width: int, *, seed: int, silent: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        inner, outer = ((layers, 2 * width, dim), (layers, width, 2 * width))
        self.inner = nn.Parameter(_SPREAD * torch.randn(inner, generator=generator))
        self.outer = nn.Parameter((0 if silent else _SPREAD) * torch.randn(outer, generator=generator))

    def forward(self, hidden: Float[Tensor, "B L T D"], start: int = 0) -> Float[Tensor, "B L T P"]:
        """Queries or addresses of hidden states at the inputs of the layers from ``start`` on."""
        layers = slice(start, start + hidden.shape[1])
        normed = nn.functional.rms_norm(hidden.float(), hidden.shape[-1:], eps=_NORM_EPSILON)
        inner = nn.functional.silu(normed @ self.inner[layers].mT)
        projected: Tensor = inner @ self.outer[layers].mT
        return projected


def slot_scores(queries: Float[Tensor, "B T P"], addresses: Float[Tensor, "B M P"]) -> Float[Tensor, "B M"]:
    """How well each slot fits a prompt, from 0 to 1, in float32: in bfloat16, rounding would choose."""
    addresses = addresses.float().mT
    parts = [torch.sigmoid(part.float() @ addresses).sum(1) for part in torch.split(queries, _QUERY_TOKENS, dim=1)]
    return torch.stack(parts).sum(0) / queries.shape[1]


def best_slots(scores: Float[Tensor, "B M"], stamps: Int[Tensor, "B M"], slots: int) -> Int[Tensor, "B K"]:
    """Which ``slots`` slots fit best, the oldest first; of those that fit alike, the newest.

    Args:
        stamps: larger where a slot is newer. Of equal stamps the later slot is taken first and stands first.
    """
    later_first = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device).expand_as(stamps)
    newest_first = later_first.gather(1, stamps.flip(1).argsort(dim=1, descending=True, stable=True))
    ranked = scores.gather(1, newest_first).argsort(dim=1, descending=True, stable=True)
    best = newest_first.gather(1, ranked[:, :slots]).sort(dim=1, descending=True).values
    return best.gather(1, stamps.gather(1, best).argsort(dim=1, stable=True))


def search_loss(scores: Float[Tensor, "*any"], is_own: Bool[Tensor, "*any"]) -> Float[Tensor, ""]:
    """How badly scores tell the slots of a prompt's own text from others: binary cross-entropy, each side half.

    M+'s equation 3 as the released trainer computes it; a side without slots counts 0.
    """
    own, other = -(scores + _EPSILON).log(), -(1 - scores + _EPSILON).log()
    return (_mean(own, is_own) + _mean(other, ~is_own)) / 2


def _mean(numbers: Tensor, mask: Tensor) -> Tensor:
    return (numbers * mask).sum() / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class FoundSlots:
    """Slots (B, H, M, W) of every layer, keys as of position 0, with what they are found by.

    ``address`` (B, L, M, P); ``stamp`` (B, L, M), larger where a slot is newer.
    """

    kv: KV
    address: Tensor
    stamp: Tensor

    @classmethod
    def of(cls, state: State, name: str) -> FoundSlots:
        """The slots in a state whose tensors' names begin with ``name``. Raises KeyError where there are none."""
        kv = state_to_kv(state, names=_names(name))
        if kv is None:
            raise KeyError(f"{name}keys.0")
        return cls(kv, state[f"{name}address"], state[f"{name}stamp"])

    def to_state(self, name: str) -> dict[str, Tensor]:
        """These slots as tensors of a state."""
        slots = kv_to_state(self.kv, names=_names(name))
        return {**slots, f"{name}address": self.address, f"{name}stamp": self.stamp}

    def append(self, other: FoundSlots) -> FoundSlots:
        """These slots, then those of ``other``."""
        address, stamp = torch.cat([self.address, other.address], dim=2), torch.cat([self.stamp, other.stamp], dim=2)
        return FoundSlots(self.kv.append(other.kv), address, stamp)

    def map(self, function: Callable[[Tensor], Tensor]) -> FoundSlots:
        """``function`` of each tensor; slots are dimension 2 of all."""
        return FoundSlots(map_slots(function, self.kv), function(self.address), function(self.stamp))

    def gather(self, where: Int[Tensor, "B L K"]) -> FoundSlots:
        """The slots at the indices of each layer."""
        heads = [
            index[:, None].expand(-1, keys.shape[1], -1)
            for index, keys in zip(where.unbind(1), self.kv.keys, strict=True)
        ]
        address = self.address.gather(2, where[..., None].expand(-1, -1, -1, self.address.shape[3]))
        return FoundSlots(self.kv.gather(heads), address, self.stamp.gather(2, where))


def _names(name: str) -> tuple[str, str]:
    return f"{name}keys", f"{name}values"


def gather_layer(
    first: KV, second: KV, layer: int, where: Int[Tensor, "B K"]
) -> tuple[Float[Tensor, "B H K W"], Float[Tensor, "B H K W"]]:
    """Keys and values of one layer at places in ``first``, then ``second``; neither is copied whole."""
    keys = _gather_from_both(first.keys[layer], second.keys[layer], where)
    return keys, _gather_from_both(first.values[layer], second.values[layer], where)


def _gather_from_both(first: Tensor, second: Tensor, where: Tensor) -> Tensor:
    held = first.shape[2]
    out = first.new_empty(*first.shape[:2], where.shape[1], first.shape[3])
    for b, index in enumerate(where):
        early = index < held
        out[b, :, early] = first[b][:, index[early]]
        out[b, :, ~early] = second[b][:, index[~early] - held]
    return out


def put_slots(old: Tensor, new: Tensor, stored: Int[Tensor, "B L K"]) -> Tensor:
    """``old`` (B, L, M, ...) with ``new`` (B, L, K, ...) at ``stored`` (B, L, K); those past the end lengthen it."""
    length = max(old.shape[2], int(stored.max()) + 1)
    grown = torch.cat([old, old.new_zeros(*old.shape[:2], length - old.shape[2], *old.shape[3:])], dim=2)
    return grown.scatter(2, stored if new.dim() == 3 else stored[..., None].expand_as(new), new)
