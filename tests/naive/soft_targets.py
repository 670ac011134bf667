"""The twin of ``byheart.tuning.token_losses``: all logits of both models at once, and autograd's own gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def token_losses(
    head: nn.Module, hidden: Tensor, targets: Tensor, reference: Tensor | None, *, kl: float, scale: float, cap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Total, cross-entropy and KL(reference || model) of each of N tokens; ``cap`` 0 is none."""

    def log_p(states: Tensor) -> Tensor:
        logits = head(states) * scale
        return torch.log_softmax(torch.tanh(logits / cap) * cap if cap else logits, dim=-1)

    log_q = log_p(hidden)
    ce = torch.nn.functional.nll_loss(log_q, targets, reduction="none")
    if reference is None:
        return ce, ce, torch.zeros_like(ce)
    frozen = log_p(reference).detach()
    divergence = torch.nn.functional.kl_div(log_q, frozen, log_target=True, reduction="none").sum(-1)
    return ce + kl * divergence, ce, divergence
