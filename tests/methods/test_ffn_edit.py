"""Edited feed-forward matrices against a model whose weights are edited in place by full passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import InputError, UsageError
from byheart.methods.ffn_edit import FFNEdit
from byheart.model.backbone import Backbone
from byheart.protocol.state import State, nbytes, stack, unstack
from byheart.testing import FIXED_FAMILIES, tiny_backbone, tiny_model
from tests.naive import ffn_edit as naive
from tests.samples import ALL_FAMILIES, backbone, hooks, logits, tokens, weights_hash, written

TEXT, PROMPT = tokens(14, seed=1), tokens(6, seed=2)
HOW: dict[str, Any] = {"steps": 4, "learning_rate": 3e-3}
KEYS, VALUES = ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]
MATRICES = {"keys": KEYS, "gate": KEYS[:1], "up": KEYS[1:], "values": VALUES, "down": VALUES}


def edited(own: Backbone, **options: Any) -> FFNEdit:
    return FFNEdit(own, **{**HOW, **options})


def changes(state: State) -> dict[str, Tensor]:
    return {name.removeprefix("delta."): tensor[0] for name, tensor in state.items()}


def near(ours: Tensor, theirs: Tensor) -> None:
    """Adam divides by each gradient's size, so where a gradient is all but zero its rounding is magnified."""
    assert theirs.norm() > 1e-3
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()


def compared(state: State, text: Tensor, family: str = "llama", start: State | None = None, **how: Any) -> int:
    """Assert that a state is what editing the weights in place gives; gives the steps that took."""
    model: Any = tiny_model(family).requires_grad_(False)
    weights = {path: model.get_decoder().get_submodule(path).weight for path in changes(state)}
    before = {path: weight.detach().clone() for path, weight in weights.items()}
    with torch.no_grad():
        for path, change in changes(start or {}).items():
            weights[path] += change
    taken = naive.edit(model, text, list(weights), **{**HOW, **how})
    for path, change in changes(state).items():
        near(change, weights[path] - before[path])
    return taken


# ---- what is learned ----


@pytest.mark.parametrize("role", list(MATRICES))
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_tuning_is_that_of_the_weights_themselves(family: str, role: str) -> None:
    if family == "phi3" and role in ("gate", "up"):
        pytest.skip("phi3 has gate and up in one matrix")
    own = backbone(family)
    state = written(edited(own, role=role, layers=[0, 2]), TEXT)
    names = ["mlp.gate_up_proj"] if family == "phi3" and role == "keys" else MATRICES[role]
    assert sorted(changes(state)) == [f"layers.{index}.{name}" for index in (0, 2) for name in names]
    assert compared(state, TEXT, family) == HOW["steps"]
    assert hooks(own) == []


@pytest.mark.parametrize("role", ["keys", "values"])
@pytest.mark.parametrize("family", FIXED_FAMILIES)
def test_models_without_rotary_positions_are_edited_alike(family: str, role: str) -> None:
    own = tiny_backbone(family)
    state = written(edited(own, role=role, layers=[0, 2]), TEXT)
    assert len(state) == 2
    # The weights of GPT-2 are the other way round; learned that way, each changes as much.
    model: Any = tiny_model(family).requires_grad_(False)
    weights = {path: model.get_decoder().get_submodule(path).weight for path in changes(state)}
    before = {path: weight.detach().clone() for path, weight in weights.items()}
    naive.edit(model, TEXT, list(weights), **HOW)
    for path, change in changes(state).items():
        difference = weights[path] - before[path]
        near(change, difference.T if family == "gpt2" else difference)


def test_a_second_text_goes_on_from_the_first() -> None:
    made = edited(backbone(), layers=[1])
    state = written(made, TEXT)
    compared(written(made, PROMPT, start=state), PROMPT, start=state)


def test_a_long_text_is_learned_in_pieces() -> None:
    made = edited(backbone(), chunk_tokens=8)
    pieces = list(made.pieces(TEXT))
    assert [piece.shape[1] for piece in pieces] == [8, 6]
    state = written(made, pieces[0])
    compared(written(made, TEXT), pieces[1], start=state)


def test_only_the_last_tokens_are_learned_where_asked_for() -> None:
    own = backbone()
    compared(written(edited(own, learned_tokens=3), TEXT), TEXT, learned_tokens=3)
    whole, more = (written(edited(own, learned_tokens=tokens), TEXT) for tokens in (0, 99))
    assert all(torch.equal(whole[name], more[name]) for name in whole)


def test_a_weight_changes_by_the_bound_at_most() -> None:
    bound = 2 * HOW["learning_rate"]
    state = written(edited(backbone(), bound=bound), TEXT)
    assert max(float(change.abs().max()) for change in state.values()) == pytest.approx(bound)
    compared(state, TEXT, bound=bound)


def test_a_text_that_is_learned_well_enough_is_left() -> None:
    own, how = backbone(), {"steps": 30, "learning_rate": 1e-2, "stop_loss": 4.0}
    made = edited(own, **how)
    assert 1 < compared(written(made, TEXT), TEXT, **how) < 30
    # Each row stops where it would alone.
    texts = [TEXT, tokens(9, seed=3), tokens(20, seed=4)]
    taken = [compared(state, text, **how) for state, text in zip(many(made, texts), texts, strict=True)]
    assert len(set(taken)) > 1
    known = edited(own, stop_loss=100.0)
    assert all(change.abs().max() == 0 for change in written(known, TEXT).values())


# ---- rows ----


def many(made: FFNEdit, texts: list[Tensor]) -> list[State]:
    with torch.no_grad():
        return made.write_many([made.init()] * len(texts), texts)


def test_texts_of_any_lengths_learn_as_if_alone() -> None:
    made = edited(backbone(), chunk_tokens=16, learned_tokens=5)
    texts = [tokens(14, seed=3), tokens(2, seed=4), tokens(40, seed=5)]
    for state, text in zip(many(made, texts), texts, strict=True):
        for path, change in changes(written(made, text)).items():
            near(changes(state)[path], change)


def test_rows_of_a_batch_learn_as_if_alone() -> None:
    made = edited(backbone())
    texts = tokens(14, seed=3, batch=3)
    both = unstack(written(made, texts, start=stack([made.init()] * 3)))
    for b, state in enumerate(both):
        for path, change in changes(written(made, texts[b : b + 1])).items():
            near(changes(state)[path], change)


# ---- reading ----


@torch.no_grad()
@pytest.mark.parametrize("role", ["keys", "values"])
def test_a_reading_is_that_of_a_model_with_the_change_in_its_weights(role: str) -> None:
    own, model = backbone(), tiny_model()
    made = edited(own, role=role)
    state = written(made, TEXT)
    for path, change in changes(state).items():
        model.get_decoder().get_submodule(path).weight += change  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits(own, made.read(state), PROMPT), model(PROMPT).logits, rtol=0, atol=1e-4)
    assert made.read(state).slots == 0


def test_a_fresh_edit_changes_nothing() -> None:
    own = backbone()
    made = edited(own)
    with torch.no_grad():
        assert torch.equal(logits(own, made.read(made.init()), PROMPT), own.logits(own.hidden(PROMPT)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("role", ["keys", "values"])
def test_what_was_written_becomes_likelier(role: str, dtype: torch.dtype) -> None:
    own = tiny_backbone(dtype=dtype)
    before = weights_hash(own)
    made = edited(own, role=role, steps=15, learning_rate=1e-2)

    def surprise(state: State) -> float:
        said = logits(own, made.read(state), TEXT)
        return float(torch.nn.functional.cross_entropy(said[0, :-1], TEXT[0, 1:]))

    assert surprise(written(made, TEXT)) < 0.8 * surprise(made.init())
    assert weights_hash(own) == before


# ---- options ----


def test_the_state_has_four_bytes_for_every_weight_whatever_the_text() -> None:
    own = tiny_backbone(dtype=torch.bfloat16)
    sizes = {role: nbytes(written(edited(own, role=role), TEXT)) for role in MATRICES}
    weight = own.linear("layers.0.mlp.down_proj").weight
    assert sizes["gate"] == sizes["up"] == sizes["down"] == sizes["values"] == 4 * weight.numel()
    assert sizes["keys"] == 2 * sizes["values"]
    assert nbytes(edited(own).init()) == nbytes(written(edited(own), PROMPT, TEXT)) == sizes["keys"]


def test_the_middle_layer_is_edited_unless_told_otherwise() -> None:
    assert edited(backbone()).layers == [1]
    assert edited(tiny_backbone(num_hidden_layers=8)).layers == [4]
    assert edited(backbone(), layers=[2, 0]).layers == [2, 0]


@pytest.mark.parametrize("role", ["gate", "up"])
def test_a_matrix_that_is_not_there_alone_is_refused(role: str) -> None:
    message = rf"layer 1 has no matrix that is its {role} alone: its keys are layers\.1\.mlp\.gate_up_proj\. Take role="
    with pytest.raises(UsageError, match=message):
        edited(backbone("phi3"), role=role)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": "queries"}, "role must be one of keys, values, gate, up, down; it is 'queries'"),
        ({"layers": [0, 3]}, r"layers must lie between 0 and 2; they are \[0, 3\]"),
        ({"layers": [-1]}, r"layers must lie between 0 and 2; they are \[-1\]"),
        ({"steps": 0}, "steps must be above 0; it is 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0; it is 0.0"),
        ({"clip": -1.0}, "clip must be above 0; it is -1.0"),
        ({"stop_loss": -0.5}, "stop_loss must be 0 or more; it is -0.5"),
        ({"learned_tokens": -1}, "learned_tokens must be 0 or more; it is -1"),
        ({"bound": -1e-3}, "bound must be 0 or more; it is -0.001"),
        ({"chunk_tokens": 1}, "chunk_tokens must be 2 or more, .*; it is 1"),
    ],
)
def test_options_that_cannot_learn_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FFNEdit(backbone(), **options)


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_without_a_next_token_is_refused(length: int) -> None:
    made = edited(backbone())
    with pytest.raises(InputError, match="too short to learn: give at least two tokens"):
        made.write(made.init(), TEXT[:, :length])
