"""The twin of ``byheart.methods.last_ffn``: the whole model runs forward and backward at every step."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def changed(model: Any, deltas: Mapping[str, Tensor]) -> Any:
    """A copy of a transformers model with ``deltas`` added to its weights."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for path, delta in deltas.items():
            twin.get_decoder().get_submodule(path).weight += delta
    return twin


def tune(
    model: Any,
    tokens: Tensor,
    *,
    start: int,
    paths: Sequence[str],
    steps: int,
    learning_rate: float,
    kl: float,
    clip: float = 1.0,
    before: Mapping[str, Tensor] | None = None,
    kl_target: float = 0.0,
) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """The change of each weight, and the loss and KL before each step, from tuning on ``tokens[:, start:]``."""
    twin = changed(model, before or {}).requires_grad_(False)
    weights = [twin.get_decoder().get_submodule(path).weight.requires_grad_() for path in paths]
    span = slice(start - 1, tokens.shape[1] - 1)
    with torch.no_grad():
        reference = model(tokens).logits[0, span].log_softmax(-1)
    optimizer = torch.optim.AdamW(weights, lr=learning_rate)
    losses, divergences = [], []
    for step in range(steps):
        log_q = twin(tokens).logits[0, span].log_softmax(-1)
        ce = torch.nn.functional.nll_loss(log_q, tokens[0, start:])
        divergence = (reference.exp() * (reference - log_q)).sum(-1).mean()
        if kl_target:
            off = min(max(float(divergence.detach()) / kl_target - 1, -0.2), 0.2)
            kl *= 1 + off * (step + 1) / steps
        loss = ce + kl * divergence
        losses.append(float(loss.detach()))
        divergences.append(float(divergence.detach()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
    frozen = [model.get_decoder().get_submodule(path).weight for path in paths]
    return {p: (w - f).detach() for p, w, f in zip(paths, weights, frozen, strict=True)}, losses, divergences
