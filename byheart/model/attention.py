"""Attention of a few query rows over the many slots of a memory, at the cost of reading the memory once.

Stock attention on a CPU is about ten times off here: it expands grouped heads, or runs one query row at a time. With
the queries of a group as rows of one head, each key and value is read once. Where there are many queries, or there is a
GPU, the stock kernel is the best one and gets the call (``choose_kernel``).

Dimensions: B batch, H key-value heads, G query heads for each, T queries, M keys, W head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from byheart.errors import UnsupportedModelError
from byheart.model.head_masks import with_head_mask
from byheart.model.observed_attention import causal_mask, show
from byheart.model.segment_attention import attended
from byheart.model.shared_prefix import attend_after, before

Kernel = Literal["stock", "grouped", "folded"]
NAME = "byheart"
FEW_ROWS = 128
MOST_TRAINED_SCORES = 1 << 17


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None = None
) -> Tensor:
    """Attention in two matrix products per key-value head; gives (B, T, H * G, W).

    ``query`` (B, H * G, T, W), ``key`` and ``value`` (B, H, M, W), ``mask`` (B or 1, H or 1, T, M): True or 0.0
    where a query sees a key. Scores are made in the model's type and normalised in float32, as in eager attention.
    """
    batch, heads, rows, width = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    folded = (query * scaling).reshape(batch, kv_heads, group * rows, width)
    scores = _scores(folded, key)
    if softcap is not None:
        scores = torch.tanh(scores.float() / softcap) * softcap
    if mask is not None:
        _hide(scores.view(batch, kv_heads, group, rows, -1), mask)
    # The kernel normalises bfloat16 scores in float32.
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    out = torch.matmul(weights, value)
    return out.view(batch, heads, rows, -1).transpose(1, 2).contiguous()


def folded_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float) -> Tensor:
    """The same by PyTorch's own kernel, with the queries of a group as rows of one head; gives (B, T, H * G, W).

    One call for all heads of all batch rows, whatever the keys' strides. Without a mask every query sees every key.
    """
    batch, heads, rows, width = query.shape
    kv_heads = key.shape[1]
    folded = query.reshape(batch, kv_heads, -1, width)
    if mask is not None:
        mask = mask[..., : key.shape[2]]
        if mask.dtype == torch.bool:
            mask = _as_scores(mask, query.dtype)
        group = heads // kv_heads
        mask = mask[:, :, None].expand(-1, -1, group, -1, -1).flatten(2, 3)
    out = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.view(batch, heads, rows, -1).transpose(1, 2).contiguous()


def _scores(folded: Tensor, key: Tensor) -> Tensor:
    """Queries (B, H, G * T, W) times keys; one product per head where the keys lie in a longer buffer.

    A batched product would copy such keys first, which costs several times the product itself.
    """
    if key.is_contiguous():
        return torch.matmul(folded, key.transpose(-1, -2))
    batch, heads = key.shape[:2]
    each = [torch.mm(folded[b, h], key[b, h].T) for b in range(batch) for h in range(heads)]
    return torch.stack(each).view(batch, heads, folded.shape[2], key.shape[2])


def _hide(scores: Tensor, mask: Tensor) -> None:
    """Put the least number where ``mask`` hides a key; columns that every query sees are not touched."""
    mask = mask[..., : scores.shape[-1]]
    if mask.dtype != torch.bool:
        scores += mask[:, :, None]
        return
    hidden = (~mask.all(dim=2).flatten(0, 1).all(dim=0)).nonzero()
    if len(hidden):
        start = int(hidden[0])
        # One small table, added to every head: filling all heads' scores through a mask takes three times as long.
        scores[..., start:] += _as_scores(mask[..., start:], scores.dtype)[:, :, None]


def _as_scores(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to scores: 0 where ``mask`` is True, else the least number."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def choose_kernel(query: Tensor, key: Tensor, mask: Tensor | None) -> Kernel:
    """Which attention is the fastest.

    Stock on a GPU, for many query rows, and for a causal mask alone, which it does at half the work; folded for few
    rows on a CPU. With gradients, which keep the scores, grouped for short rows in bfloat16: the stock kernel's
    backward is the slowest part of a step.
    """
    rows, keys = query.shape[2], key.shape[2]
    if query.device.type != "cpu":
        return "stock"
    if query.requires_grad:
        return "grouped" if query.dtype == torch.bfloat16 and rows * keys <= MOST_TRAINED_SCORES else "stock"
    return "folded" if rows <= FEW_ROWS and (rows == 1 or mask is not None) else "stock"


def register() -> str:
    """Make byheart's attention known to transformers; gives its name."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME


def _mask(*, mask_function: Callable[..., Any], attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """transformers' own mask, but distances are counted in unpadded tokens.

    Padding between a prefix and a shorter row's prompt would otherwise use up a sliding window.
    """
    rule = mask_function
    if attention_mask is not None and attention_mask.shape[1] == kwargs["kv_length"]:
        places = attention_mask.cumsum(1) - 1

        def rule(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return mask_function(batch, head, places[batch, query], places[batch, key])

    return sdpa_mask(mask_function=rule, attention_mask=attention_mask, **kwargs)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Few queries over many keys by ``grouped_attention``, everything else by transformers' own attention."""
    if kwargs.get("s_aux") is not None:
        raise UnsupportedModelError(
            "attention with learned sinks (gpt-oss) is not supported; open the model with sdpa."
        )
    scale = _scale(query, scaling)
    if (ahead := before(key)) is not None:
        window = kwargs.get("sliding_window")
        return attend_after(
            ahead, query, key, value, attention_mask, scaling=scale, softcap=softcap, window=window
        ), None
    attention_mask = with_head_mask(query, key, attention_mask)
    show(query, key, attention_mask, scaling=scale, softcap=softcap)
    attend = partial(_attend, module, scaling=scaling, softcap=softcap, **kwargs)
    return attended(attend, query, key, value, attention_mask), None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None,
    softcap: float | None,
    **kwargs: Any,
) -> Tensor:
    """By the kernel that is the fastest for these shapes."""
    scale = _scale(query, scaling)
    kernel = choose_kernel(query, key, mask) if softcap is None else "grouped"
    if kernel == "folded":
        return folded_attention(query, key, value, mask, scaling=scale)
    if kernel == "stock":
        if mask is not None and mask.shape[1] > 1:
            # One for each query head.
            mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
        out: Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)[0]
        return out
    if mask is None and query.shape[2] > 1:
        mask = causal_mask(query, key)
    return grouped_attention(query, key, value, mask, scaling=scale, softcap=softcap)


def _scale(query: Tensor, scaling: float | None) -> float:
    """What scores are multiplied with: the layer's own, or that of its width."""
    return scaling if scaling is not None else query.shape[-1] ** -0.5
