"""Rotating keys by whole positions, for models whose positions are plain rotations (RoPE, Su et al. 2021, section 3.2).

Rotary attention depends on differences of positions only, so a key may be kept in any frame and rotated into the one
that a reader needs. Angles are computed in float64: a rotation by a million positions is as exact as one by a single
position.
It knows nothing of models; the backbone measures the frequencies.

Dimensions: B batch, H heads, M slots, W head width, F rotated pairs (F <= W / 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Pairing = Literal["half", "interleaved", "none"]
_MANY = 64
_LONGEST_TABLE = 1 << 17


@dataclass(frozen=True)
class Rotation:
    """How one layer rotates its keys.

    ``frequencies``: radians per position, for each rotated pair. ``pairing``: which components form a pair:
    ``half`` (i, i + F), ``interleaved`` (2i, 2i + 1), or ``none`` (a layer without positions).
    """

    frequencies: tuple[float, ...]
    pairing: Pairing

    def rotate(self, keys: Float[Tensor, "B H M W"], steps: int | Tensor) -> Float[Tensor, "B H M W"]:
        """Keys as they would be ``steps`` positions later: one number, or one per slot (M,) or row and slot (B, M)."""
        if self.pairing == "none" or (isinstance(steps, int) and steps == 0):
            return keys
        exact = keys.dtype if keys.dtype in (torch.float32, torch.float64) else torch.float32
        cos, sin = _angles(self.frequencies, steps, keys.device, exact)
        pairs, halves = len(self.frequencies), self._halves()
        # bfloat16 keys are multiplied in float32: a rounded cosine would rotate every key by the same wrong angle.
        wide = keys.to(exact)
        first, second = wide[..., halves[0]], wide[..., halves[1]]
        out = torch.empty_like(keys)
        out[..., halves[0]] = torch.addcmul(first * cos, second, sin, value=-1)
        out[..., halves[1]] = torch.addcmul(second * cos, first, sin)
        if 2 * pairs < keys.shape[-1]:
            out[..., 2 * pairs :] = keys[..., 2 * pairs :]
        return out

    def slow(self, width: int, *, steps: int) -> Bool[Tensor, " W"]:
        """Which of a key's ``width`` components turn by less than one radian in so many positions, or not at all."""
        slow = torch.ones(width, dtype=torch.bool)
        if self.pairing != "none":
            for half in self._halves():
                slow[half] = torch.tensor(self.frequencies) * steps < 1
        return slow

    def _halves(self) -> tuple[slice, slice]:
        """Where the first and the second components of the pairs are."""
        pairs = len(self.frequencies)
        if self.pairing == "half":
            return slice(0, pairs), slice(pairs, 2 * pairs)
        return slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)


def _angles(
    frequencies: tuple[float, ...], steps: int | Tensor, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine, (1, F), (M, F) or (B, 1, M, F), for one step, one per slot, or one per slot and batch row."""
    if isinstance(steps, int):
        return _one_place(frequencies, steps, steps + 1, device, dtype)
    last = int(steps.max()) if steps.numel() else 0
    if steps.numel() >= _MANY and int(steps.min()) >= 0 and last < _LONGEST_TABLE:
        length = 1 << max(last, 1).bit_length()
        cos, sin = (table[steps.to(device)] for table in _all_places(frequencies, 0, length, device, dtype))
    else:
        cos, sin = _computed(frequencies, steps.to(device), dtype)
    return (cos, sin) if steps.dim() < 2 else (cos[:, None], sin[:, None])


def _computed(frequencies: tuple[float, ...], steps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    radians = torch.tensor(frequencies, dtype=torch.float64, device=steps.device)
    angles = steps.to(torch.float64)[..., None] * radians
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _span(
    frequencies: tuple[float, ...], start: int, stop: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Every position from ``start`` to ``stop``, for later passes in any mode."""
    with torch.inference_mode(False):
        return _computed(frequencies, torch.arange(start, stop, device=device), dtype)


_one_place = lru_cache(maxsize=64)(_span)
# One table serves all layers and all writes.
_all_places = lru_cache(maxsize=8)(_span)
