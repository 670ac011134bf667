"""Numbers in 8 or 4 bits, without calibration: each group of neighbours between its own least and greatest number.

Groups lie within one slot, so that a slot's code depends on nothing but the slot: slots are kept, dropped and reordered
as codes. Ranges per channel over many slots, which fit keys better, would tie slots together; on SmolLM2-135M they save
a fifth of the divergence of 4 bits (docs/explanation/log.md), and where one slot is written at a time they would take
more bytes than its numbers.

Dimensions: S slots in any shape, W numbers of a key or value, G groups, E = 2 G ends of ranges, N bytes of codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from byheart.errors import UsageError

BITS = (16, 8, 4)
"""What a number of a slot may take, without its share of the ranges; with 16 it stays as the model makes it."""
_GROUP = 32


class Quantised(NamedTuple):
    """Numbers as codes: ``codes`` hold two numbers in a byte at 4 bits, ``ranges`` all lows, then all highs."""

    codes: UInt8[Tensor, "*S N"]
    ranges: Float[Tensor, "*S E"]


def require_bits(bits: int) -> None:
    """Raise UsageError unless numbers can be kept in so many bits."""
    if bits not in BITS:
        raise UsageError(f"bits must be one of {', '.join(map(str, BITS))}; it is {bits}.")


def group_width(width: int) -> int:
    """How many neighbours of ``width`` numbers share a range: 32, or the most below that which divide them evenly."""
    return next(size for size in range(min(_GROUP, width), 0, -1) if width % size == 0)


def quantise(numbers: Float[Tensor, "*S W"], *, bits: int) -> Quantised:
    """Codes of ``numbers``; where they have 16 bits, their ranges are exact."""
    kept = torch.bfloat16 if numbers.dtype == torch.bfloat16 else torch.float16
    most = torch.finfo(kept).max
    groups = _grouped(numbers.float())
    low, high = (end.clamp(-most, most).to(kept) for end in groups.aminmax(dim=-1))
    start, span = low.float()[..., None], (high.float() - low.float())[..., None]
    top = (1 << bits) - 1
    # A group of equal numbers has no span, and its low says all.
    shares = torch.where(span > 0, (groups - start) / span, 0)
    codes = (shares * top).round().clamp(0, top).nan_to_num().to(torch.uint8).flatten(-2)
    return Quantised(_pack(codes) if bits == 4 else codes, torch.cat([low, high], dim=-1))


def dequantise(code: Quantised, *, bits: int, width: int, dtype: torch.dtype) -> Float[Tensor, "*S W"]:
    """The numbers that codes stand for, each within half a step of what it was."""
    codes = _unpack(code.codes)[..., :width] if bits == 4 else code.codes
    low, high = (end.float()[..., None] for end in code.ranges.chunk(2, dim=-1))
    shares = _grouped(codes.float()) / ((1 << bits) - 1)
    # Both ends are met exactly, and no range overflows.
    numbers: Tensor = low * (1 - shares) + high * shares
    return numbers.flatten(-2).to(dtype)


def _grouped(numbers: Float[Tensor, "*S W"]) -> Float[Tensor, "*S G _"]:
    width = numbers.shape[-1]
    return numbers.reshape(*numbers.shape[:-1], width // group_width(width), group_width(width))


def _pack(codes: UInt8[Tensor, "*S W"]) -> UInt8[Tensor, "*S N"]:
    """Two codes of 4 bits in each byte, the first in its lower half; an odd one out has a byte of its own."""
    pairs = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2))
    return pairs[..., ::2] | (pairs[..., 1::2] << 4)


def _unpack(packed: UInt8[Tensor, "*S N"]) -> UInt8[Tensor, "*S 2*N"]:
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
