"""Slots that heads do not see, written as keys that stock attention gives nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from byheart.errors import UnsupportedModelError, UsageError
from byheart.model.backbone import Backbone
from byheart.model.observed_attention import observing
from byheart.model.reading import KV, DenseDelta, Reading
from byheart.model.stock_attention import stock_cache, without_masks
from byheart.testing import tiny_model
from tests.samples import backbone, logits, tokens

TEXT, ASKED, PROMPT = tokens(30, seed=1, batch=2), tokens(12, seed=2), tokens(20, seed=3)
# Slow enough that a pair of a head of 8 numbers outlasts the text, as most of those of a real model do.
SLOW = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}


@torch.no_grad()
def with_common_direction() -> PreTrainedModel:
    """A model whose queries have one, as real models' have: tiny ones are too random to learn it."""
    model = tiny_model("qwen2", **SLOW)
    for layer in model.model.layers:
        # The slowest pair of each of the four heads.
        layer.self_attn.q_proj.bias.view(4, 8)[:, [3, 7]] += torch.tensor([2.0, -1.5])
    return model


def ragged(own: Backbone, text: Tensor = TEXT) -> Reading:
    """A text of which every head sees other slots, about half."""
    kv, generator = own.prefill(text), torch.Generator().manual_seed(5)
    masks = tuple(torch.rand(key.shape[:3], generator=generator) < 0.5 for key in kv.keys)
    return Reading(KV(kv.keys, kv.values, masks), batch=len(text))


@torch.no_grad()
def test_stock_attention_reads_what_every_head_sees_by_itself() -> None:
    own, stock = Backbone(with_common_direction()), with_common_direction()
    stock.set_attn_implementation("sdpa")
    reading = ragged(own)
    found = without_masks(own, reading, ASKED)
    assert found.prefix is not None
    assert found.prefix.masks == ()
    expected = logits(own, reading, PROMPT.expand(2, -1))
    read: Any = stock(PROMPT.expand(2, -1), **{own.anatomy.cache_argument: stock_cache(found)})
    torch.testing.assert_close(read.logits, expected, rtol=0, atol=1e-5)
    # Slots that are seen stay as they are; without null keys, the others would count.
    assert reading.prefix is not None
    for layer, mask in enumerate(reading.prefix.masks):
        assert torch.equal(reading.prefix.keys[layer][mask], found.prefix.keys[layer][mask])
        assert torch.equal(reading.prefix.values[layer][mask], found.prefix.values[layer][mask])
    bare = Reading(KV(reading.prefix.keys, reading.prefix.values), batch=2)
    assert (logits(own, bare, PROMPT.expand(2, -1)) - expected).abs().max() > 1e-2


@torch.no_grad()
def test_null_keys_hold_for_many_tokens() -> None:
    own = Backbone(with_common_direction())
    reading = ragged(own, tokens(30, seed=1))
    found = without_masks(own, reading, ASKED)
    with observing(1) as seen, own.reading([found]) as cache:
        for _ in range(20):
            seen.layers.clear()
            own.hidden(PROMPT, cache=cache)
            for layer, mask in zip(seen.layers, reading.prefix.masks if reading.prefix else (), strict=True):
                assert float(layer[:, :, :30][~mask].max()) < 1e-9
    assert cache.get_seq_length() == 430


def test_a_reading_that_all_heads_see_is_left_as_it_is() -> None:
    own = backbone()
    for reading in (Reading(), Reading(own.prefill(TEXT), batch=2)):
        assert without_masks(own, reading, ASKED) is reading


def test_a_model_whose_queries_have_no_common_direction_is_refused() -> None:
    own = backbone()
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM.* off by 0\.\d\d nats.*compact, full, window"):
        without_masks(own, ragged(own), ASKED)


def test_a_cache_takes_slots_alone() -> None:
    own = backbone()
    assert stock_cache(Reading()).get_seq_length() == 0
    with pytest.raises(UsageError, match=r"take Session\.stock_reading"):
        stock_cache(ragged(own))
    delta = DenseDelta(torch.zeros(1, 2, 2))
    with pytest.raises(UsageError, match="changes 1 linear layers"):
        stock_cache(Reading(deltas={"layers.0.mlp.up_proj": delta}))
