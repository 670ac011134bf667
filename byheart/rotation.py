"""Turning keys by whole positions, for models whose positions are plain rotations (RoPE, Su et al. 2021, section 3.2).

Rotary attention depends on differences of positions only, so a key may be kept in any frame and turned into the one
that a reader needs. Angles are computed in float64: a turn by a million positions is as exact as a turn by one.
It knows nothing of models; the backbone measures the frequencies.

Dimensions: B batch, H heads, M rows, W head width, F rotated pairs (F <= W / 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Pairing = Literal["half", "interleaved", "none"]


@dataclass(frozen=True)
class Rotation:
    """How one layer turns its keys.

    ``frequencies``: radians a position, for each rotated pair. ``pairing``: which components form a pair:
    ``half`` (i, i + F), ``interleaved`` (2i, 2i + 1), or ``none`` (a layer without positions).
    """

    frequencies: tuple[float, ...]
    pairing: Pairing

    def turn(self, keys: Float[Tensor, "B H M W"], steps: int | Tensor) -> Float[Tensor, "B H M W"]:
        """Keys as they would be ``steps`` positions later: one number, (M,) a row, or (B, M) a row and batch row."""
        if self.pairing == "none" or (isinstance(steps, int) and steps == 0):
            return keys
        cos, sin = (
            _turns(self.frequencies, steps, keys.device, keys.dtype)
            if isinstance(steps, int)
            else _angles(self.frequencies, steps, keys.device, keys.dtype)
        )
        pairs = len(self.frequencies)
        out = torch.empty_like(keys)
        if self.pairing == "half":
            halves = (slice(0, pairs), slice(pairs, 2 * pairs))
        else:
            halves = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
        first, second = keys[..., halves[0]], keys[..., halves[1]]
        out[..., halves[0]] = first * cos - second * sin
        out[..., halves[1]] = second * cos + first * sin
        if 2 * pairs < keys.shape[-1]:
            out[..., 2 * pairs :] = keys[..., 2 * pairs :]
        return out


@lru_cache(maxsize=64)
def _turns(
    frequencies: tuple[float, ...], steps: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return _angles(frequencies, torch.tensor([steps]), device, dtype)


def _angles(
    frequencies: tuple[float, ...], steps: Tensor, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    angles = steps.to(device, torch.float64)[..., None] * torch.tensor(frequencies, dtype=torch.float64, device=device)
    # bfloat16 keys are multiplied in float32: a rounded cosine would turn every key by the same wrong angle.
    exact = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    cos, sin = angles.cos().to(exact), angles.sin().to(exact)
    return (cos, sin) if steps.dim() < 2 else (cos[:, None], sin[:, None])
