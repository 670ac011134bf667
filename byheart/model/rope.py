"""Rotating keys by whole positions, for models whose positions are plain rotations (RoPE, Su et al. 2021, section 3.2).

Rotary attention depends on differences of positions only, so a key may be kept in any frame and rotated into the one
that a reader needs. Angles are computed in float64: a rotation by a million positions is as exact as one by a single
position. Rounded angles (``Rounding``) do not add up, so there a key is rotated from position 0 alone.
It knows nothing of models; the backbone measures the frequencies.

Dimensions: B batch, H heads, M slots, W head width, F rotated pairs (F <= W / 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from byheart.errors import UnsupportedModelError

Pairing = Literal["half", "interleaved", "none"]
_MANY = 64
_LONGEST_TABLE = 1 << 17
ROUNDED = "rotary_rounding"
"""The setting of a model's config that says how its angles are rounded; byheart's own."""
_ROUNDED_TO = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Rounding:
    """How a model's angles are rounded, where code that was cast to a shorter type as a whole has trained or run it.

    Args:
        dtype: that type. Frequencies are always rounded to it.
        whole: positions, angles, cosines and sines are too; else they are made of the rounded frequencies exactly.
        factor: positions are divided by it before they meet the frequencies (linear scaling).
    """

    dtype: torch.dtype
    whole: bool
    factor: float = 1.0

    @classmethod
    def of(cls, config: object, positions: int) -> Rounding | None:
        """What a model's config says of it, if anything. Raises UnsupportedModelError."""
        said: Any = getattr(config, ROUNDED, None)
        if said is None:
            return None
        found = said if isinstance(said, Mapping) else {}
        dtype, whole, factor = _ROUNDED_TO.get(str(found.get("to"))), found.get("whole"), found.get("factor")
        if dtype is None or not isinstance(whole, bool) or not isinstance(factor, int | float) or not 0 < factor < 1e6:
            raise UnsupportedModelError(
                f"the config's {ROUNDED} is {str(said)[:200]!a}; it must have 'to' (one of {', '.join(_ROUNDED_TO)}), "
                "'whole' (true or false) and 'factor' (a number above 0)."
            )
        if whole and positions > torch.finfo(dtype).max:
            raise UnsupportedModelError(
                f"the config's {ROUNDED} rounds positions to {found['to']}, which has none beyond "
                f"{torch.finfo(dtype).max:,.0f}, but the model reads {positions:,}."
            )
        return cls(dtype, whole, float(factor))

    def angles(self, frequencies: Float[Tensor, " F"], steps: Tensor) -> Tensor:
        """Radians (..., F) at each of ``steps`` (...): in the type itself where all is rounded, else in float64."""
        rounded = (frequencies * self.factor).to(self.dtype)
        if self.whole:
            return (steps.to(self.dtype) / self.factor)[..., None] * rounded
        return (steps.to(torch.float64) / self.factor)[..., None] * rounded.to(torch.float64)


@dataclass(frozen=True)
class Rotation:
    """How one layer rotates its keys.

    ``frequencies``: radians per position, for each rotated pair. ``pairing``: which components form a pair:
    ``half`` (i, i + F), ``interleaved`` (2i, 2i + 1), or ``none`` (a layer without positions). ``rounding``: of the
    angles, where there is any.
    """

    frequencies: tuple[float, ...]
    pairing: Pairing
    rounding: Rounding | None = None

    def rotate(self, keys: Float[Tensor, "B H M W"], steps: int | Tensor) -> Float[Tensor, "B H M W"]:
        """Keys as they would be ``steps`` positions later: one number, or one per slot (M,) or row and slot (B, M)."""
        if self.pairing == "none" or (isinstance(steps, int) and steps == 0):
            return keys
        exact = keys.dtype if keys.dtype in (torch.float32, torch.float64) else torch.float32
        cos, sin = _table(self.frequencies, steps, keys.device, exact, self.rounding)
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


def _table(
    frequencies: tuple[float, ...], steps: int | Tensor, device: torch.device, dtype: torch.dtype, by: Rounding | None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine, (1, F), (M, F) or (B, 1, M, F), for one step, one per slot, or one per slot and batch row."""
    if isinstance(steps, int):
        return _one_place(frequencies, steps, steps + 1, device, dtype, by)
    last = int(steps.max()) if steps.numel() else 0
    if steps.numel() >= _MANY and int(steps.min()) >= 0 and last < _LONGEST_TABLE:
        length = 1 << max(last, 1).bit_length()
        cos, sin = (table[steps.to(device)] for table in _all_places(frequencies, 0, length, device, dtype, by))
    else:
        cos, sin = cos_sin(frequencies, steps.to(device), dtype, by)
    return (cos, sin) if steps.dim() < 2 else (cos[:, None], sin[:, None])


def cos_sin(
    frequencies: tuple[float, ...], steps: Tensor, dtype: torch.dtype, rounding: Rounding | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine (..., F) of each frequency at each of ``steps`` (...)."""
    radians = torch.tensor(frequencies, dtype=torch.float64, device=steps.device)
    angles = rounding.angles(radians, steps) if rounding else steps.to(torch.float64)[..., None] * radians
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _span(
    frequencies: tuple[float, ...],
    start: int,
    stop: int,
    device: torch.device,
    dtype: torch.dtype,
    rounding: Rounding | None,
) -> tuple[Tensor, Tensor]:
    """Every position from ``start`` to ``stop``, for later passes in any mode."""
    with torch.inference_mode(False):
        return cos_sin(frequencies, torch.arange(start, stop, device=device), dtype, rounding)


_one_place = lru_cache(maxsize=64)(_span)
# One table serves all layers and all writes.
_all_places = lru_cache(maxsize=8)(_span)
