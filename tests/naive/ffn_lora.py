"""The twin of ``byheart.methods.ffn_lora``: two factors beside each matrix, tuned by full passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Factors = dict[str, tuple[Tensor, Tensor]]


def tune(
    model: Any,
    tokens: Tensor,
    start: Mapping[str, tuple[Tensor, Tensor]],
    *,
    scale: float,
    steps: int,
    learning_rate: float,
) -> Factors:
    """``start`` maps paths to (down, up); gives them after learning ``tokens`` (1, T)."""
    factors = {p: tuple(part.clone().requires_grad_() for part in pair) for p, pair in start.items()}
    decoder = model.get_decoder()

    def hook(down: Tensor, up: Tensor) -> Any:
        return lambda module, args, out: out + scale * args[0] @ down.T @ up.T

    handles = [decoder.get_submodule(p).register_forward_hook(hook(*pair)) for p, pair in factors.items()]
    leaves = [part for pair in factors.values() for part in pair]
    optimizer = torch.optim.AdamW(leaves, lr=learning_rate)
    for _ in range(steps):
        logits = model(tokens).logits[0, :-1]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, tokens[0, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
    for handle in handles:
        handle.remove()
    return {p: (down.detach(), up.detach()) for p, (down, up) in factors.items()}
