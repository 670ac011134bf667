"""Means of every k slots: of which, at which positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from byheart.errors import UsageError
from byheart.methods.mean_pooled import MeanPooled
from byheart.protocol.kv_slots import state_to_kv
from tests.samples import ALL_FAMILIES, backbone, logits, tokens, written

PROMPT = tokens(5, seed=9)


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "length", "groups"),
    [
        ({"every": 3}, 10, [(0, 1), (1, 4), (4, 7), (7, 10)]),
        ({"every": 3, "sinks": 0}, 9, [(0, 3), (3, 6), (6, 9)]),
        ({"every": 4, "sinks": 2}, 16, [(0, 1), (1, 2), (2, 9), (9, 16)]),
        ({"every": 16}, 5, [(0, 1), (1, 5)]),
        ({"every": 16, "sinks": 3}, 2, [(0, 1), (1, 2)]),
    ],
)
def test_slots_are_means_of_unrotated_slots(
    options: dict[str, Any], length: int, groups: list[tuple[int, int]]
) -> None:
    own, text = backbone(), tokens(length, seed=1)
    slots = own.rotate(own.prefill(text), -torch.arange(length))
    held = state_to_kv(written(MeanPooled(own, **options), text))
    assert held is not None
    for ours, every in ((held.keys, slots.keys), (held.values, slots.values)):
        for layer, given in zip(ours, every, strict=True):
            means = torch.stack([given[:, :, start:stop].mean(2) for start, stop in groups], dim=2)
            torch.testing.assert_close(layer, means, rtol=0, atol=1e-4)


@torch.no_grad()
def test_later_texts_have_no_sinks_and_see_the_kept_slots() -> None:
    own, first, second = backbone(), tokens(12, seed=2), tokens(6, seed=3)
    made = MeanPooled(own, every=4)
    state = written(made, first)
    before = made.read(state).prefix
    expected = own.prefill(second, before)
    after = made.read(written(made, second, start=state)).prefix
    assert before is not None
    assert after is not None
    assert (before.slots, after.slots) == (3, 5)
    for ours, theirs in zip(after.values, expected.values, strict=True):
        means = torch.stack([theirs[:, :, :3].mean(2), theirs[:, :, 3:].mean(2)], dim=2)
        torch.testing.assert_close(ours[:, :, 3:], means, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_means_of_one_slot_read_as_the_text(family: str) -> None:
    own, text = backbone(family), tokens(20, seed=1)
    made = MeanPooled(own, every=1, chunk_tokens=7)
    ours = logits(own, made.read(written(made, text)), PROMPT)
    torch.testing.assert_close(ours, own.model(torch.cat([text, PROMPT], dim=1)).logits[:, 20:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_means_are_kept_in_the_model_s_type() -> None:
    small = backbone("llama", torch.bfloat16)
    held = state_to_kv(written(MeanPooled(small, every=4), tokens(12)))
    assert held is not None
    assert {tensor.dtype for tensor in (*held.keys, *held.values)} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be above 0; it is 0"),
        ({"sinks": -1}, "sinks must be 0 or more; it is -1"),
        ({"chunk_tokens": 0}, "chunk_tokens must be above 0; it is 0"),
    ],
)
def test_options_that_keep_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MeanPooled(backbone(), **options)
