"""The twin of ``byheart.methods.ffn_edit``: the matrices of a model are edited in place, by full passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def edit(
    model: Any,
    tokens: Tensor,
    paths: Sequence[str],
    *,
    steps: int,
    learning_rate: float,
    clip: float = 1.0,
    stop_loss: float = 0.0,
    learned_tokens: int = 0,
    bound: float = 0.0,
) -> int:
    """Change ``model``'s weights at ``paths`` to fit ``tokens`` (1, T); gives how many steps were taken."""
    weights = [model.get_decoder().get_submodule(path).weight.requires_grad_() for path in paths]
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    targets = tokens[0, 1:].clone()
    if learned_tokens:
        targets[:-learned_tokens] = -100
    taken = 0
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], targets)
        if loss < stop_loss:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        taken += 1
        if bound:
            with torch.no_grad():
                for weight, start in zip(weights, before, strict=True):
                    weight.copy_(torch.minimum(torch.maximum(weight, start - bound), start + bound))
    model.requires_grad_(False)
    return taken
