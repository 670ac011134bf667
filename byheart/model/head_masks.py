"""Slots that some key-value heads do not see, so that each head can have slots of its own.

A cache knows which slots are hidden, the attention function applies it, and the model's code between the two knows
nothing of it: the mask travels on the keys that the cache gives out. Where nothing is hidden there is no mask.

What two heads see of three slots and two new tokens, of which the second has a slot of its own alone:

    head | slots | new
      0  | 1 0 1 | 1 1
      1  | 0 0 0 | 1 1

Dimensions: B batch, H key-value heads, T queries, M keys, P slots that may be hidden.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from byheart.model.observed_attention import causal_mask

_NAME = "_byheart_head_mask"


def attach_mask(keys: Tensor, mask: Bool[Tensor, "B H P"]) -> Tensor:
    """The same keys (B, H, M, W), with what each head sees of their first slots."""
    setattr(keys, _NAME, mask)
    return keys


def with_head_mask(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor | None:
    """``mask`` (B or 1, 1, T, M) and the one on the keys, (B, H, T, M); ``mask`` itself where nothing does."""
    # Not of a family: keys that the cache gave out may carry one.
    seen: Tensor | None = getattr(key, _NAME, None)
    if seen is None:
        return mask
    shown = torch.nn.functional.pad(seen, (0, key.shape[2] - seen.shape[2]), value=True)[:, :, None]
    if mask is None and query.shape[2] > 1:
        mask = causal_mask(query, key)
    if mask is None:
        return shown
    mask = mask[..., : key.shape[2]]
    return mask & shown if mask.dtype == torch.bool else mask.masked_fill(~shown, torch.finfo(mask.dtype).min)
