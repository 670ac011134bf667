"""A prefix tuned on the text, against tuning a stock model's own cache."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

from byheart.errors import InputError, UsageError
from byheart.methods.cartridge import Cartridge, draw_chunks
from byheart.model.losses import next_token_loss
from byheart.protocol.kv_slots import state_to_kv
from byheart.testing import tiny_backbone, tiny_model
from tests.naive import cartridge as naive
from tests.samples import ALL_FAMILIES, backbone, hooks, tokens, written

TEXT = tokens(24, seed=1)
HOW: dict[str, Any] = {"slots": 6, "learning_rate": 3e-2}


@pytest.mark.parametrize("kl", [0.0, 0.5])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_tuning_is_that_of_a_stock_model(family: str, kl: float) -> None:
    made = Cartridge(backbone(family), steps=4, chunk_tokens=10, kl=kl, **HOW)
    held = state_to_kv(written(made, TEXT))
    chunks = list(islice(draw_chunks(24, chunk_tokens=10, seed=0), 4))
    assert len({chunk.start for chunk in chunks}) > 1
    model = tiny_model(family).requires_grad_(False)
    start = naive.tune(model, TEXT, [], kl=kl, **HOW)
    expected = naive.tune(model, TEXT, chunks, kl=kl, **HOW)
    assert held is not None
    for layer, pair in enumerate(expected):
        for ours, theirs, before in zip((held.keys[layer], held.values[layer]), pair, start[layer], strict=True):
            assert torch.equal(theirs[:, :, 0], before[:, :, 0])
            torch.testing.assert_close(ours[:, :, 0], before[:, :, 0], rtol=0, atol=1e-5)
            # Adam divides by each gradient's size, so where one is all but zero its rounding is magnified.
            assert (ours - theirs).norm() < 2e-2 * (theirs - before).norm()
    assert hooks(made.backbone) == []


def test_the_text_is_predicted_better_than_before() -> None:
    own = backbone()

    def loss(steps: int) -> float:
        made = Cartridge(own, steps=steps, chunk_tokens=24, **HOW)
        with torch.no_grad(), own.reading([made.read(written(made, TEXT))]) as cache:
            return float(next_token_loss(own, own.hidden(TEXT, cache=cache), TEXT))

    assert loss(30) < loss(1) - 0.1


def test_a_short_text_leaves_fewer_slots_and_a_later_one_adds_the_rest() -> None:
    made = Cartridge(backbone(), slots=8, steps=1)
    state = written(made, tokens(5, seed=2))
    assert made.read(state).slots == 5
    assert made.read(written(made, TEXT, start=state)).slots == 8


def test_slots_are_kept_in_the_model_s_type() -> None:
    made = Cartridge(backbone("llama", torch.bfloat16), slots=4, steps=2)
    held = state_to_kv(written(made, TEXT))
    assert held is not None
    assert {tensor.dtype for tensor in (*held.keys, *held.values)} == {torch.bfloat16}


def test_a_text_longer_than_the_model_reads_cannot_be_taught() -> None:
    own, text = tiny_backbone(max_position_embeddings=64), tokens(100, seed=3)
    assert written(Cartridge(own, slots=4, steps=1, chunk_tokens=32), text)
    with pytest.raises(InputError, match=r"The text has 100 tokens in all, but the model reads at most 64; .* kl=0"):
        written(Cartridge(own, slots=4, steps=1, chunk_tokens=32, kl=0.1), text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 1}, "slots and chunk_tokens must be 2 or more; they are 1 and 256"),
        ({"chunk_tokens": 1}, "must be 2 or more; they are 64 and 1"),
        ({"steps": 0}, "steps must be above 0; it is 0"),
        ({"kl": -1.0}, r"kl must be 0 or more; it is -1\.0"),
    ],
)
def test_options_that_learn_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Cartridge(backbone(), **options)
