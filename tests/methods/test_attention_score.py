"""The slots that the last tokens attend to most, against the attention that transformers writes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import UnsupportedModelError, UsageError
from byheart.methods.attention_score import AttentionScore
from byheart.model.backbone import Backbone
from byheart.protocol.kv_slots import state_to_kv
from byheart.testing import tiny_backbone, tiny_model
from tests.samples import ALL_FAMILIES, backbone, logits, tokens, written

PROMPT, TEXT = tokens(5, seed=9), tokens(24, seed=1)


def wanted(probabilities: Tensor, *, slots: int, observed: int, pooled: int) -> list[int]:
    """Which slots stay of one key-value head, from its query heads' probabilities (G, T, M)."""
    scores = probabilities[:, -observed:].mean((0, 1)).tolist()
    length, side = len(scores), pooled // 2
    near = [scores[max(0, place - side) : place + side + 1] for place in range(length)]
    smooth = [sum(each) / len(each) for each in near]
    order = sorted(range(length - observed), key=lambda place: -smooth[place])
    return sorted([*order[: slots - observed], *range(length - observed, length)])


@torch.no_grad()
@pytest.mark.parametrize(("slots", "observed", "pooled"), [(10, 4, 3), (10, 4, 1), (6, 6, 5), (20, 1, 5)])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3"])
def test_what_the_last_tokens_look_at_stays(family: str, slots: int, observed: int, pooled: int) -> None:
    own, eager = backbone(family), tiny_model(family)
    eager.set_attn_implementation("eager")
    given = eager(TEXT, output_attentions=True).attentions
    every = own.rotate(own.prefill(TEXT), -torch.arange(24))
    held = state_to_kv(written(AttentionScore(own, slots=slots, observed=observed, pooled=pooled), TEXT))
    assert held is not None
    for layer, probabilities in enumerate(given):
        heads = probabilities[0].unflatten(0, (held.keys[layer].shape[1], -1))
        for head, each in enumerate(heads):
            places = wanted(each, slots=slots, observed=observed, pooled=pooled)
            for ours, theirs in ((held.keys, every.keys), (held.values, every.values)):
                torch.testing.assert_close(ours[layer][0, head], theirs[layer][0, head, places], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_text_that_fits_reads_as_the_text(family: str) -> None:
    own = backbone(family)
    made = AttentionScore(own, slots=32, observed=3, chunk_tokens=7)
    ours = logits(own, made.read(written(made, TEXT)), PROMPT)
    torch.testing.assert_close(ours, own.model(torch.cat([TEXT, PROMPT], dim=1)).logits[:, 24:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_text_is_read_in_parts_that_the_model_can_take() -> None:
    own = tiny_backbone(max_position_embeddings=64)
    made = AttentionScore(own, slots=16, observed=4, chunk_tokens=32)
    state = written(made, tokens(320, seed=3))
    assert made.read(state).slots == 16
    assert logits(own, made.read(state), PROMPT).isfinite().all()


def test_a_model_with_another_attention_is_refused() -> None:
    model = tiny_model("llama", seed=5)
    model.set_attn_implementation("sdpa")
    made = AttentionScore(Backbone(model), slots=8, observed=4)
    with pytest.raises(UnsupportedModelError, match=r"saw 0 of \d+ layers; open it with Backbone\.open"):
        made.write(made.init(), TEXT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots must be above 0; it is 0"),
        ({"observed": 0}, "observed must be above 0; it is 0"),
        ({"slots": 8, "observed": 9}, "observed must be at most slots, 8: its slots are kept; it is 9"),
        ({"pooled": 4}, "pooled must be odd, .* it is 4"),
        ({"chunk_tokens": 0}, "chunk_tokens must be above 0; it is 0"),
    ],
)
def test_options_that_keep_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AttentionScore(backbone(), **options)
