"""Rotary tables as MemoryLLM's code has them once the model was cast to a shorter type, by arithmetic in that type."""

from __future__ import annotations

import torch
from torch import Tensor


def interpolated(dim: int, base: float, count: int, dtype: torch.dtype, *, shrink: float) -> tuple[Tensor, Tensor]:
    """The 7B's cosine and sine (count, dim): everything in ``dtype``, positions shrunk by a factor below 1."""
    frequencies = (1.0 / base ** (torch.arange(0, dim, 2).float() / dim)).to(dtype)
    # On a CPU, arange in bfloat16 rounds twice; on a GPU it is this.
    positions = torch.arange(count).to(dtype)
    angles = torch.outer(positions * shrink, frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def scaled(dim: int, base: float, count: int, dtype: torch.dtype, *, factor: float) -> tuple[Tensor, Tensor]:
    """The 8B's: frequencies in ``dtype``, everything after in float64, positions divided by a factor above 1."""
    frequencies = (1.0 / base ** (torch.arange(0, dim, 2).float() / dim)).to(dtype).double()
    angles = torch.outer(torch.arange(count).double() / factor, frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()
