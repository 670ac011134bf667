"""Bootstrap samples and their intervals."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_DRAWS = 1000


def draws(count: int) -> Int[Tensor, "D N"]:
    """Which of ``count`` items each bootstrap sample has; always the same ones."""
    return torch.randint(count, (_DRAWS, count), generator=torch.Generator().manual_seed(0))


def interval(values: Float[Tensor, " D"]) -> tuple[float, float]:
    """The bounds between which 95 % of the samples' values lie."""
    low, high = torch.quantile(values.double(), torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high
