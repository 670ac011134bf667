"""ROME and MEMIT by their formulas, on a model whose weights are edited in place, by full passes and plain inverses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def key(model: Any, matrix: nn.Module, fact: Tensor, contexts: Sequence[Tensor], subject: int) -> Tensor:
    """The mean of what the matrix is given at the subject, over the contexts and none."""
    found = []
    for context in (fact[:0], *contexts):
        seen: list[Tensor] = []
        handle = matrix.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model(torch.cat([context, fact])[None])
        handle.remove()
        found.append(seen[0][0, subject + len(context)])
    return torch.stack(found).mean(0)


def at(model: Any, module: nn.Module, text: Tensor, place: int) -> Tensor:
    """What a module gives at a place."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        model(text[None])
    handle.remove()
    return seen[0][0, place]


def value(
    model: Any,
    module: nn.Module,
    fact: Tensor,
    contexts: Sequence[Tensor],
    *,
    subject: int,
    start: int,
    essence: Tensor,
    essence_subject: int,
    steps: int,
    learning_rate: float,
    kl: float,
    decay: float,
    clamp: float,
) -> Tensor:
    """What the module should give at the subject, learned a text at a time."""
    before = at(model, module, fact, subject)
    change = torch.zeros_like(before).requires_grad_()
    optimizer = torch.optim.Adam([change], lr=learning_rate)

    def said(text: Tensor, place: int) -> Tensor:
        def add(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            return out + change * (torch.arange(out.shape[1]) == place)[None, :, None]

        handle = module.register_forward_hook(add)
        logits: Tensor = model(text[None]).logits[0].log_softmax(-1)
        handle.remove()
        return logits

    with torch.no_grad():
        plain = said(essence, essence_subject)[-1]
    for _ in range(steps):
        losses = []
        for context in (fact[:0], *contexts):
            text = torch.cat([context, fact])
            logits = said(text, subject + len(context))
            places = range(start + len(context), len(text))
            losses.append(-torch.stack([logits[n - 1, text[n]] for n in places]).mean())
        now = said(essence, essence_subject)[-1]
        loss = torch.stack(losses).mean() + kl * (now.exp() * (now - plain)).sum()
        loss = loss + decay * change.pow(2).sum().clamp(min=1e-24).sqrt() / before.norm() ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            change *= min(1.0, float(clamp * before.norm() / change.norm()))
    return before + change.detach()


def rome(weight: Tensor, moments: Tensor, key: Tensor, wanted: Tensor, given: Tensor) -> Tensor:
    """The change (out, in) of a matrix of rank one."""
    direction = torch.linalg.inv(moments.double()).float() @ key
    return torch.outer(wanted - given, direction) / (direction @ key)


def least_squares(moments: Tensor, keys: Tensor, missing: Callable[[Tensor], Tensor]) -> Tensor:
    """The change of a matrix for all keys (K, n) at once, where ``missing`` (out, n) is what they lack."""
    return missing(keys) @ keys.T @ torch.linalg.inv(moments + keys @ keys.T)
