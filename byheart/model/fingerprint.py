"""A name for weights, by which a state finds the model that it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint(tensors: Mapping[str, Tensor], dtype: torch.dtype, *, samples: int) -> str:
    """A name for weights: shapes and evenly spaced values of every tensor, rounded to ``dtype``.

    Any training changes it; a precision above ``dtype`` does not.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // samples)][:samples].to("cpu", dtype).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(memoryview(as_bytes(some)))
    return digest.hexdigest()[:32]


def as_bytes(tensor: Tensor) -> Any:
    """A CPU tensor's bytes as a buffer, without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
