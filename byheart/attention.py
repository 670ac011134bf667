"""Attention of a few query rows over many memory rows, at the cost of reading the memory once.

Stock attention on a CPU is about ten times off here: it expands grouped heads, or runs one query row at a time.
Folding the queries of a group into rows of one matrix product reads each key and value once. Where the batch of
queries is large, or there is a GPU, the stock kernel is the better one and gets the call.

Dimensions: B batch, H key-value heads, G query heads for each, T query rows, M key rows, W head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

NAME = "byheart"
FEW_ROWS = 64


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None = None
) -> Tensor:
    """Attention in two matrix products a key-value head; gives (B, T, H * G, W).

    ``query`` (B, H * G, T, W), ``key`` and ``value`` (B, H, M, W), ``mask`` (B or 1, 1, T, M): True or 0.0 where a
    query sees a key. Scores are made in the model's type and normalised in float32, as in transformers' eager
    attention.
    """
    batch, heads, rows, width = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    folded = (query * scaling).reshape(batch, kv_heads, group * rows, width)
    scores = torch.matmul(folded, key.transpose(-1, -2)).float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.view(batch, kv_heads, group, rows, -1)
        seen = mask[:, :, None, :, : scores.shape[-1]]
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min) if seen.dtype == torch.bool else scores + seen
        scores = scores.view(batch, kv_heads, group * rows, -1)
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    out = torch.matmul(weights, value)
    return out.view(batch, heads, rows, -1).transpose(1, 2).contiguous()


def prefers_grouped(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """Whether the grouped products beat the stock kernel: few query rows on a CPU, and more keys than queries."""
    rows = query.shape[2]
    causal_alone = mask is None and rows > 1
    return query.device.type == "cpu" and rows <= FEW_ROWS and not causal_alone and key.shape[2] >= rows
