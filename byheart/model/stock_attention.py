"""What other engines read of a memory: keys and values alone, without masks of single heads.

A memory whose heads have slots of their own (``model.head_masks``) is read by byheart's attention. Stock attention
shows all slots to all heads. There a hidden slot becomes a null key: a value of zero, and a key that points away from
all queries, so that none attends to it. That is possible because the queries of a head have a direction in common,
whatever is asked; in components that rotary positions turn slowly it stays the same for thousands of tokens. It is
measured on a few tokens that are read after the memory, and what comes out is compared with what byheart reads.

Dimensions: B batch, H key-value heads, G query heads for each, M slots, T tokens, W head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from byheart.errors import UnsupportedModelError, UsageError
from byheart.model.backbone import Backbone
from byheart.model.observed_attention import observing_queries
from byheart.model.reading import KV, Reading

# A mean query's score of a null key is minus this; a few queries are ten times nearer.
_DEPTH = 100.0
# Components that turn by a radian within so many tokens after the memory are left out: a direction must outlast them.
_REACH = 1024
# In nats per token: what rounding in bfloat16 makes is a tenth of it, one head that attends to null keys ten times.
_MOST = 0.01


def without_masks(backbone: Backbone, reading: Reading, tokens: Int[Tensor, "1 T"]) -> Reading:
    """The same reading for attention that knows no masks of single heads; ``reading`` itself where it has none.

    Args:
        tokens: some that could be read next, on which the queries are measured; a dozen do.

    Raises UnsupportedModelError where the model has a head whose queries have no direction in common.
    """
    prefix = reading.prefix
    if prefix is None or not prefix.masks:
        return reading
    expected, queries = _read(backbone, reading, tokens)
    stock = replace(reading, prefix=_with_null_keys(backbone, prefix, queries))
    found, _ = _read(backbone, stock, tokens)
    divergence = float((expected.exp() * (expected - found)).sum(-1).mean())
    if not divergence <= _MOST:
        raise UnsupportedModelError(
            f"{type(backbone.model).__name__} cannot read this memory with stock attention: answers would be off by "
            f"{divergence:.2f} nats per token, because some heads have queries in all directions, and slots cannot be "
            "hidden from those. Ask with Session.ask, or write with a method whose heads share their slots (compact, "
            "full, window)."
        )
    return stock


def stock_cache(reading: Reading) -> DynamicCache:
    """The slots of a reading in transformers' own cache, which grows as it is used: make one for each conversation.

    Raises UsageError for what a cache cannot hold.
    """
    if reading.deltas:
        raise UsageError(
            f"This memory changes {len(reading.deltas)} linear layers, which a cache cannot hold; ask with Session.ask."
        )
    cache = DynamicCache()
    if reading.prefix is not None:
        if reading.prefix.masks:
            raise UsageError("Single heads do not see some slots of this memory; take Session.stock_reading() of it.")
        for layer, slots in enumerate(zip(reading.prefix.keys, reading.prefix.values, strict=True)):
            cache.update(*slots, layer)
    return cache


def generate_inputs(
    backbone: Backbone, reading: Reading, prompt: Int[Tensor, " T"]
) -> dict[str, Tensor | DynamicCache]:
    """What ``generate`` of a model like the backbone's, but stock, needs to continue ``prompt`` after a reading.

    Raises UsageError for what a cache cannot hold.
    """
    tokens = prompt.expand(reading.batch, -1)
    seen = tokens.new_ones(reading.batch, reading.slots + len(prompt))
    return {"input_ids": tokens, "attention_mask": seen, backbone.anatomy.cache_argument: stock_cache(reading)}


@torch.no_grad()
def _read(
    backbone: Backbone, reading: Reading, tokens: Int[Tensor, "1 T"]
) -> tuple[Float[Tensor, "B T V"], list[Float[Tensor, "B _ T W"]]]:
    """Log-probabilities after each of ``tokens``, and the scaled queries of each layer."""
    rows = tokens.expand(reading.batch, -1)
    with backbone.reading([reading], room=rows.shape[1]) as cache, observing_queries() as queries:
        hidden = backbone.hidden(rows, cache=cache)
    return backbone.logits(hidden).log_softmax(-1), queries


def _with_null_keys(backbone: Backbone, kv: KV, queries: Sequence[Float[Tensor, "B _ T W"]]) -> KV:
    """The same slots without masks, with null keys in the place of those that are hidden."""
    steps = min(_REACH, backbone.positions - kv.slots)
    keys, values = [], []
    for layer, (key, value, mask) in enumerate(zip(kv.keys, kv.values, kv.masks, strict=True)):
        mean = queries[layer].float().reshape(*key.shape[:2], -1, key.shape[3]).mean(2)
        direction = mean
        # Models whose keys cannot be moved have no rotations; where theirs are rotary after all, the check finds it.
        if backbone.anatomy.rotations:
            slow = backbone.anatomy.rotations[layer].slow(key.shape[3], steps=steps)
            direction = mean * slow.to(mean.device)
        squared = (mean * direction).sum(-1, keepdim=True)
        null = -_DEPTH * direction / squared.clamp(min=torch.finfo(squared.dtype).tiny)
        keys.append(torch.where(mask[..., None], key, null[:, :, None].to(key.dtype)))
        values.append(value.masked_fill(~mask[..., None], 0))
    return KV(tuple(keys), tuple(values))
