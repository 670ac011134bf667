"""The slots of the shortest keys: which ones, in every layer and head."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from byheart.errors import UsageError
from byheart.methods.key_norm import KeyNorm
from byheart.protocol.kv_slots import state_to_kv
from byheart.testing import tiny_backbone
from tests.naive.key_norm import kept
from tests.samples import ALL_FAMILIES, backbone, logits, tokens, written

PROMPT = tokens(5, seed=9)


@torch.no_grad()
@pytest.mark.parametrize(("slots", "sinks", "recent"), [(8, 2, 3), (8, 0, 0), (8, 4, 4), (1, 0, 1), (19, 1, 0)])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_the_shortest_keys_stay_with_their_values(family: str, slots: int, sinks: int, recent: int) -> None:
    # No token twice: in the first layer their keys would be equally long.
    own, text = backbone(family), torch.arange(3, 23)[None]
    every = own.rotate(own.prefill(text), -torch.arange(20))
    held = state_to_kv(written(KeyNorm(own, slots=slots, sinks=sinks, recent=recent), text))
    assert held is not None
    for ours, given, keys in zip(held.keys + held.values, every.keys + every.values, every.keys * 2, strict=True):
        for head in range(keys.shape[1]):
            places = kept(keys[0, head], slots, sinks=sinks, recent=recent)
            torch.testing.assert_close(ours[0, head], given[0, head, places], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_text_that_fits_reads_as_the_text(family: str) -> None:
    own, text = backbone(family), tokens(20, seed=1)
    made = KeyNorm(own, slots=36, chunk_tokens=7)
    ours = logits(own, made.read(written(made, text)), PROMPT)
    torch.testing.assert_close(ours, own.model(torch.cat([text, PROMPT], dim=1)).logits[:, 20:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_long_text_is_read_in_parts_and_leaves_its_first_and_last_slots() -> None:
    own, text = tiny_backbone(max_position_embeddings=64), tokens(320, seed=3)
    made = KeyNorm(own, slots=24, sinks=2, recent=3, chunk_tokens=32)
    state = written(made, text)
    assert made.read(state).slots == 24
    assert logits(own, made.read(state), PROMPT).isfinite().all()
    held = state_to_kv(state)
    assert held is not None
    ends = own.project([own.embed(text)] * len(own.layers)).values[0][:, :, [0, 1, -3, -2, -1]]
    torch.testing.assert_close(held.values[0][:, :, [0, 1, -3, -2, -1]], ends, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots must be above 0; it is 0"),
        ({"sinks": -1}, r"sinks and recent must be 0 or more and within slots, 512; they are -1, 32"),
        ({"slots": 8, "sinks": 4, "recent": 5}, r"within slots, 8; they are 4, 5"),
        ({"chunk_tokens": 0}, "chunk_tokens must be above 0; it is 0"),
    ],
)
def test_options_that_keep_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        KeyNorm(backbone(), **options)
