"""One of every k slots: which ones, and where they stand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from byheart.errors import UsageError
from byheart.methods.every_kth import EveryKth
from byheart.protocol.kv_slots import state_to_kv
from byheart.testing import tiny_backbone
from tests.samples import ALL_FAMILIES, backbone, logits, tokens, written

PROMPT = tokens(5, seed=9)


def kept(made: EveryKth, *texts: torch.Tensor) -> list[int]:
    """Which tokens of these texts are held: in the first layer, a value depends on its token alone."""
    own, text = made.backbone, torch.cat(texts, dim=1)
    every = own.project([own.embed(text)] * len(own.layers)).values[0]
    held = state_to_kv(written(made, *texts))
    assert held is not None
    apart = (held.values[0][:, :, :, None] - every[:, :, None]).abs().amax(dim=(0, 1, 4))
    assert (apart.min(dim=1).values < 1e-4).all()
    return apart.argmin(dim=1).tolist()


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "length", "slots"),
    [
        ({"every": 3}, 10, [0, 3, 6, 9]),
        ({"every": 3, "sinks": 0}, 9, [2, 5, 8]),
        ({"every": 4, "sinks": 2}, 16, [0, 1, 8, 15]),
        ({"every": 16}, 5, [0, 4]),
        ({"every": 16, "sinks": 0}, 5, [4]),
        ({"every": 16, "sinks": 3}, 2, [0, 1]),
        ({"every": 1}, 4, [0, 1, 2, 3]),
    ],
)
def test_a_slot_is_kept_for_every_k_tokens(options: dict[str, Any], length: int, slots: list[int]) -> None:
    text = torch.arange(3, 3 + length)[None]
    assert kept(EveryKth(backbone(), **options), text) == slots


@torch.no_grad()
def test_later_texts_have_no_sinks_and_every_text_leaves_a_row() -> None:
    first, second, third = torch.arange(3, 11)[None], torch.arange(11, 19)[None], torch.arange(19, 21)[None]
    assert kept(EveryKth(backbone(), every=4, sinks=1), first, second, third) == [0, 7, 11, 15, 17]


@torch.no_grad()
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_text_kept_whole_reads_as_the_text(family: str) -> None:
    own, text = backbone(family), tokens(20, seed=1)
    made = EveryKth(own, every=1, chunk_tokens=7)
    ours = logits(own, made.read(written(made, text)), PROMPT)
    torch.testing.assert_close(ours, own.model(torch.cat([text, PROMPT], dim=1)).logits[:, 20:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_text_sees_all_of_itself_and_the_kept_slots_of_earlier_ones() -> None:
    own, first, second = backbone(), tokens(12, seed=2), tokens(12, seed=3)
    made = EveryKth(own, every=4)
    state = written(made, first)
    before = made.read(state).prefix
    expected = own.prefill(second, before)
    after = made.read(written(made, second, start=state)).prefix
    assert before is not None
    assert after is not None
    slots = [3, 7, 11]
    for ours, theirs in zip(after.values, expected.values, strict=True):
        torch.testing.assert_close(ours[:, :, before.slots :], theirs[:, :, slots], rtol=0, atol=1e-4)


@torch.no_grad()
def test_text_is_read_in_parts_that_the_model_can_take() -> None:
    own = tiny_backbone(max_position_embeddings=64)
    made = EveryKth(own, every=16, chunk_tokens=32)
    state = written(made, tokens(320, seed=3))
    assert made.read(state).slots == 20
    assert logits(own, made.read(state), PROMPT).isfinite().all()


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
        EveryKth(backbone(), **options)
