"""A few steps of AdamW on leaf tensors: learning at the moment of writing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch import Tensor

from byheart.errors import UsageError, require_not_negative, require_positive

MOST_STEPS = 1_000_000
"""More would be no learning at the moment of writing; the number may come from a state file of somebody else's."""


def require_steps(steps: int, *, least: int = 1) -> None:
    """Raise UsageError for a number of steps that is no use."""
    (require_positive if least else require_not_negative)(steps=steps)
    if steps > MOST_STEPS:
        raise UsageError(f"steps must be at most {MOST_STEPS:,}; it is {steps:,}.")


def descend(
    groups: Sequence[Sequence[Tensor]],
    loss: Callable[[], Tensor],
    *,
    steps: int,
    learning_rate: float,
    clip: float = 1.0,
    weight_decay: float = 0.01,
    stop_loss: float = 0.0,
    bound: float = 0.0,
) -> None:
    """Take ``steps`` of AdamW on leaf tensors; gradients are clipped to norm ``clip`` within each group.

    Groups are independent problems that share one pass, such as one document each.

    Args:
        loss: of all groups together, or one number per group.
        stop_loss: a group whose number falls below it is left as it is from then on.
        bound: the largest absolute value of a component after a step; 0 is no bound.
    """
    parameters = [parameter for group in groups for parameter in group]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            value = loss()
            total = value.sum()
        done = [each < stop_loss for each in value.tolist()] if value.dim() else [False]
        if all(done):
            return
        total.backward()  # type: ignore[no-untyped-call]
        for group, is_done in zip(groups, cycle(done)):
            if is_done:
                # AdamW skips what has no gradient.
                for parameter in group:
                    parameter.grad = None
            torch.nn.utils.clip_grad_norm_(list(group), clip)
        optimizer.step()
        if bound:
            with torch.no_grad():
                for parameter in parameters:
                    parameter.clamp_(-bound, bound)
