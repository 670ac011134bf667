"""Scores of repeat-score from the attention that transformers writes out, one slot and one token at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def scores(eager: Any, context: Tensor, passes: list[tuple[Tensor, Tensor]], *, start: int, tokens: int) -> Tensor:
    """Scores (L, H, T) of the ``tokens`` slots from ``start`` on of a context (1, M).

    Each pass is what asks for a part of the text, and that part; the last token that asks counts as one that repeats.
    """
    heads = eager.config.num_key_value_heads
    found = torch.zeros(eager.config.num_hidden_layers, heads, tokens)
    for asked, part in passes:
        whole = torch.cat([context, asked, part], dim=1)
        first = context.shape[1] + asked.shape[1] - (1 if asked.shape[1] else 0)
        for layer, given in enumerate(eager(whole, output_attentions=True).attentions):
            for head, weights in enumerate(given[0]):
                group = head * heads // len(given[0])
                for slot in range(tokens):
                    most = weights[first:, start + slot].max()
                    found[layer, group, slot] = max(found[layer, group, slot], most)
    return found
