"""Tuned keys or values of feed-forward layers against tuning by passes through the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import InputError, UsageError
from byheart.methods.ffn_lora import FFNLoRA
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol.state import State, stack, unstack
from byheart.testing import FIXED_FAMILIES, tiny_backbone, tiny_model
from tests.naive import ffn_lora as naive
from tests.samples import ALL_FAMILIES, backbone, hooks, logits, tokens, weights_hash, written

TEXT, PROMPT = tokens(14, seed=1), tokens(6, seed=2)
HOW: dict[str, Any] = {"steps": 4, "learning_rate": 3e-2}
RANK, ALPHA = 3, 12.0


def learned(own: Backbone, **options: Any) -> FFNLoRA:
    return FFNLoRA(own, **{"rank": RANK, "alpha": ALPHA, **HOW, **options})


def factors(state: State) -> naive.Factors:
    """The paper's pair for each path: the state has the scale in ``up``."""
    paths = sorted(name.removeprefix("down.") for name in state if name.startswith("down."))
    return {path: (state[f"down.{path}"][0], state[f"up.{path}"][0] * RANK / ALPHA) for path in paths}


def near(ours: Tensor, theirs: Tensor) -> None:
    """Adam divides by each gradient's size, so where a gradient is all but zero its rounding is magnified."""
    assert theirs.norm() > 1e-3
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()


@pytest.mark.parametrize("role", ["keys", "values"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_tuning_is_that_of_full_passes(family: str, role: str) -> None:
    own = backbone(family)
    made = learned(own, role=role, layers=[0, 2])
    start = made.init()
    ours = factors(written(made, TEXT))
    theirs = naive.tune(tiny_model(family).requires_grad_(False), TEXT, factors(start), scale=ALPHA / RANK, **HOW)
    assert len(ours) == 2 * (1 if role == "values" or family == "phi3" else 2)
    for path, (down, up) in theirs.items():
        near(ours[path][0] - start[f"down.{path}"][0], down - start[f"down.{path}"][0])
        near(ours[path][1], up)
    assert hooks(own) == []


@pytest.mark.parametrize("family", FIXED_FAMILIES)
def test_models_without_rotary_positions_learn_a_text(family: str) -> None:
    own = tiny_backbone(family)
    made = learned(own, layers=[0, 2])
    state = written(made, TEXT, PROMPT)
    assert sorted(state) == [
        f"{part}.h.{n}.mlp.{'c_fc' if family == 'gpt2' else 'fc_in'}" for part in ("down", "up") for n in (0, 2)
    ]

    def loss(reading: Reading) -> float:
        said = logits(own, reading, PROMPT).log_softmax(-1)
        return -float(said[0, :-1].gather(1, PROMPT[0, 1:, None]).mean())

    assert loss(made.read(state)) < loss(Reading())
    assert hooks(own) == []


def test_a_second_text_goes_on_from_the_first() -> None:
    own = backbone()
    made = learned(own, layers=[1])
    state = written(made, TEXT)
    ours = factors(written(made, PROMPT, start=state))
    theirs = naive.tune(tiny_model().requires_grad_(False), PROMPT, factors(state), scale=ALPHA / RANK, **HOW)
    for path, (down, up) in theirs.items():
        near(ours[path][0], down)
        near(ours[path][1], up)


@torch.no_grad()
@pytest.mark.parametrize("role", ["keys", "values"])
def test_a_reading_is_that_of_a_model_with_the_update_in_its_weights(role: str) -> None:
    own, model = backbone(), tiny_model()
    made = learned(own, role=role)
    state = written(made, TEXT)
    for path, (down, up) in factors(state).items():
        model.get_decoder().get_submodule(path).weight += ALPHA / RANK * up @ down  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits(own, made.read(state), PROMPT), model(PROMPT).logits, rtol=0, atol=1e-4)
    assert made.read(state).slots == 0


def test_rows_of_a_batch_learn_as_if_alone() -> None:
    own = backbone()
    made = learned(own)
    texts = tokens(14, seed=3, batch=3)
    both = unstack(written(made, texts, start=stack([made.init()] * 3)))
    for b, state in enumerate(both):
        for path, (down, up) in factors(written(made, texts[b : b + 1])).items():
            near(factors(state)[path][0], down)
            near(factors(state)[path][1], up)


def test_a_fresh_update_changes_nothing() -> None:
    own = backbone()
    made = learned(own)
    with torch.no_grad():
        assert torch.equal(logits(own, made.read(made.init()), PROMPT), own.logits(own.hidden(PROMPT)))
    starts = [learned(own, seed=seed).init() for seed in (0, 0, 1)]
    name = next(name for name in starts[0] if name.startswith("down."))
    assert torch.equal(starts[0][name], starts[1][name])
    assert not torch.equal(starts[0][name], starts[2][name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_written_becomes_likelier(dtype: torch.dtype) -> None:
    own = tiny_backbone(dtype=dtype)
    before = weights_hash(own)

    def surprise(state: State, text: Tensor) -> float:
        said = logits(own, made.read(state), text)
        return float(torch.nn.functional.cross_entropy(said[0, :-1], text[0, 1:]))

    for role in ("keys", "values"):
        made = learned(own, role=role, steps=15)
        state = written(made, TEXT)
        assert surprise(state, TEXT) < 0.8 * surprise(made.init(), TEXT)
        assert all(part.dtype == torch.float32 for part in state.values())
    assert weights_hash(own) == before


def test_the_last_quarter_is_updated_unless_told_otherwise() -> None:
    deep = tiny_backbone(num_hidden_layers=9)
    assert learned(deep).layers == [7, 8]
    assert learned(backbone()).layers == [2]
    assert learned(deep, layers=[3, 1]).layers == [3, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": "queries"}, "role must be one of keys, values; it is 'queries'"),
        ({"layers": [0, 3]}, r"layers must lie between 0 and 2; they are \[0, 3\]"),
        ({"layers": [-1]}, r"layers must lie between 0 and 2; they are \[-1\]"),
        ({"rank": 0}, "rank must be above 0; it is 0"),
        ({"alpha": 0.0}, "alpha must be above 0; it is 0.0"),
        ({"steps": -1}, "steps must be above 0; it is -1"),
        ({"clip": 0.0}, "clip must be above 0; it is 0.0"),
        ({"chunk_tokens": 1}, "chunk_tokens must be 2 or more, .*; it is 1"),
    ],
)
def test_options_that_cannot_learn_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FFNLoRA(backbone(), **options)


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_without_a_next_token_is_refused(length: int) -> None:
    made = learned(backbone())
    with pytest.raises(InputError, match="too short to learn: give at least two tokens"):
        made.write(made.init(), TEXT[:, :length])
