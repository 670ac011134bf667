"""What a state must look like before a method uses it, for states that somebody else may have written.

A template is a state whose names, shapes and types are those that the method would have made; of its integers each is
the least that may stand there. Its numbers take no memory where they are expanded from one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from byheart.protocol.state import State

_LARGEST = 1 << 53


def length(state: State, name: str, axis: int, *, most: int, least: int = 1) -> int:
    """How long a tensor is along an axis, from ``least`` to ``most``; ``least`` where there is no such tensor."""
    shape = state[name].shape if name in state else ()
    return max(least, min(shape[axis], most)) if axis < len(shape) else least


def require_template(state: State, template: State) -> None:
    """Raise ValueError, with the tensor's name, unless a state is like a template and all its numbers are finite."""
    if odd := sorted(state.keys() ^ template.keys()):
        raise ValueError(f"tensor {odd[0][:100]!r} is {'missing' if odd[0] in template else 'none of its'}")
    for name, tensor in sorted(state.items()):
        _require_like(name, tensor, template[name])


def _require_like(name: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.shape != expected.shape:
        raise ValueError(f"tensor '{name}' has shape {tuple(tensor.shape)}, and must have {tuple(expected.shape)}")
    if tensor.dtype != expected.dtype:
        raise ValueError(f"tensor '{name}' is {tensor.dtype}, and must be {expected.dtype}")
    if tensor.is_floating_point():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"tensor '{name}' holds what is no finite number")
    elif bool(((tensor.long() < expected.to(tensor.device)) | (tensor.long() > _LARGEST)).any()):
        raise ValueError(f"tensor '{name}' holds {int(tensor.min())} to {int(tensor.max())}, which it cannot")


def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros that take the memory of one."""
    return torch.zeros((), dtype=dtype).expand(shape)
