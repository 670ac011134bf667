"""The twin of ``byheart.methods.cartridge``: a stock model over a stock cache, and torch's own cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from byheart.model.anatomy import cache_argument

Rows = list[tuple[Tensor, Tensor]]


def tune(
    model: Any, text: Tensor, chunks: Sequence[slice], *, slots: int, learning_rate: float, kl: float, clip: float = 1.0
) -> Rows:
    """Keys and values (1, H, M, W) of each layer after a step on each of ``chunks`` of ``text`` (1, T)."""
    with torch.no_grad():
        cache = DynamicCache()
        model(text[:, :slots], **{cache_argument(model): cache})
        start = [(layer.keys, layer.values) for layer in cache.layers]
        full = model(text).logits.log_softmax(-1)
    leaves = [part[:, :, 1:].clone().requires_grad_() for pair in start for part in pair]

    def now() -> Rows:
        own = iter(leaves)
        return [tuple(torch.cat([part[:, :, :1], next(own)], dim=2) for part in pair) for pair in start]

    optimizer = torch.optim.AdamW(leaves, lr=learning_rate)
    for chunk in chunks:
        cache = DynamicCache()
        for index, (keys, values) in enumerate(now()):
            cache.update(keys, values, index)
        log_q = model(text[:, chunk], **{cache_argument(model): cache}).logits[0, :-1].log_softmax(-1)
        log_p = full[0, chunk][:-1]
        loss = torch.nn.functional.nll_loss(log_q, text[0, chunk][1:])
        loss = loss + kl * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves, clip)
        optimizer.step()
    return [(keys.detach(), values.detach()) for keys, values in now()]
