"""A model's linear layers, whichever way round they store their weights.

``nn.Linear`` holds (out, in). GPT-2's layers are of another class and hold (in, out): what they compute is the same,
and a change of their output by a hook is too.
"""

from __future__ import annotations

from typing import TypeAlias

from torch import nn
from transformers.pytorch_utils import Conv1D

Linear: TypeAlias = nn.Linear | Conv1D
LINEARS = (nn.Linear, Conv1D)


def widths(linear: Linear) -> tuple[int, int]:
    """How wide the input and the output are; the shape of weights in 4 bits does not say it."""
    return (linear.in_features, linear.out_features) if isinstance(linear, nn.Linear) else (linear.nx, linear.nf)


def is_transposed(linear: Linear) -> bool:
    """Whether its weights are (in, out)."""
    return not isinstance(linear, nn.Linear)
