"""Facts edited by ROME: against its formulas with weights changed in place, and what an edit promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import UsageError
from byheart.methods.rome import ROME
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol import key_moments
from byheart.protocol.fact import Fact
from byheart.protocol.fact_editing import draw_contexts
from byheart.protocol.state import State
from byheart.testing import FIXED_FAMILIES, tiny_backbone, tiny_model
from tests.naive import fact_editing as naive
from tests.samples import backbone, hooks, logits, moments_of, tokens

TEXT, OTHER = tokens(9, seed=1)[0], tokens(9, seed=5)[0]
FACT = Fact(TEXT, 3, 7, 9, tokens(5, seed=3)[0], 2)
SECOND = Fact(OTHER, 2, 6, 9, tokens(6, seed=4)[0], 3)
HOW: dict[str, Any] = {"steps": 4, "learning_rate": 0.1, "kl": 0.5, "decay": 0.1, "clamp": 20.0}


def editor(own: Backbone, **options: Any) -> ROME:
    moments_of(own)
    return ROME(own, **{**HOW, "layers": [1], "contexts": 2, **options})


def edited(made: ROME, *facts: Fact) -> State:
    state = made.init()
    for fact in facts:
        [state] = made.write_facts([state], [fact])
    return state


def change(state: State) -> Tensor:
    [path] = {name.partition(".")[2] for name in state}
    return state[f"up.{path}"][0] @ state[f"down.{path}"][0]


def missed(own: Backbone, reading: Reading, fact: Fact) -> float:
    said = logits(own, reading, fact.tokens[None])[0].log_softmax(-1)
    places = range(fact.start, fact.end)
    return -sum(float(said[n - 1, fact.tokens[n]]) for n in places) / len(places)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", *FIXED_FAMILIES])
def test_edits_are_those_of_the_formulas_made_in_place(family: str) -> None:
    own = tiny_backbone(family)
    made = editor(own)
    [path] = made.moment_paths
    contexts = draw_contexts(own, 2, 0)
    assert [len(context) for context in contexts] == [5, 10]
    model: Any = tiny_model(family).requires_grad_(False)
    matrix = model.get_decoder().get_submodule(path)
    total = torch.zeros_like(change(edited(made, FACT)))
    for fact in (FACT, SECOND):
        marks = {"subject": fact.subject, "start": fact.start}
        marks |= {"essence": fact.essence, "essence_subject": fact.essence_subject}
        wanted = naive.value(model, matrix, fact.tokens, contexts, **marks, **HOW)
        key = naive.key(model, matrix, fact.tokens, contexts, fact.subject)
        moments = key_moments.require(own, path)
        ridge = 1e-4 * moments.diagonal().median() * torch.eye(len(moments))
        delta = naive.rome(matrix.weight, moments + ridge, key, wanted, matrix(key[None])[0])
        total += delta
        with torch.no_grad():
            matrix.weight += delta.T if family == "gpt2" else delta
    found = change(edited(made, FACT, SECOND))
    assert (found - total).norm() < 2e-2 * total.norm()
    assert hooks(own) == []


def test_the_edited_matrix_gives_the_value_at_the_key_and_changes_others_least() -> None:
    own = backbone()
    made = editor(own)
    state = edited(made, FACT)
    [path] = made.moment_paths
    delta, moments, stored = change(state), key_moments.require(own, path), state[f"up.{path}"][0, :, 0]
    key = naive.key(own.model, own.linear(path), TEXT, draw_contexts(own, 2, 0), FACT.subject)
    torch.testing.assert_close(delta @ key, stored, rtol=1e-3, atol=1e-4)
    cost = float((delta @ moments @ delta.T).trace())
    # Of all changes of rank one that store it, none moves what the model's own keys give less.
    for direction in torch.randn(20, len(key), generator=torch.Generator().manual_seed(0)):
        other = torch.outer(stored, direction) / (direction @ key)
        assert cost < float((other @ moments @ other.T).trace())


@pytest.mark.parametrize("family", ["llama", *FIXED_FAMILIES])
def test_a_fact_is_known_after_it_was_edited_and_after_another_one(family: str) -> None:
    own = tiny_backbone(family)
    made = editor(own, steps=40, learning_rate=0.05, decay=0.0, kl=0.0, clamp=1000.0, contexts=1)
    before, after = missed(own, Reading(), FACT), missed(own, made.read(edited(made, FACT)), FACT)
    assert after < before - 0.1
    both = made.read(edited(made, FACT, SECOND))
    assert missed(own, both, FACT) < before


def test_a_change_is_as_long_as_the_clamp_allows() -> None:
    own = backbone()
    made = editor(own, clamp=0.01, steps=8, learning_rate=1.0, contexts=0, decay=0.0)
    state = edited(made, FACT)
    linear = own.linear(made.moment_paths[0])
    before = naive.at(own.model, linear, TEXT, FACT.subject)
    length = float(state[f"up.{made.moment_paths[0]}"].norm())
    assert length == pytest.approx(0.01 * float(before.norm()), rel=1e-3)


def test_text_without_marks_has_its_last_tokens_learned() -> None:
    made = editor(backbone(), learned_tokens=2)
    with torch.no_grad():
        ours = made.write(made.init(), TEXT[None])
    theirs = edited(made, Fact(TEXT, 6, 7, 9))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_cannot_be_is_said() -> None:
    own = tiny_backbone(seed=77)
    for options, message in (
        ({"layers": [0, 1]}, "rome edits one layer; layers is .0, 1.. memit spreads"),
        ({"layers": [3]}, "layers must lie between 0 and 2; they hold 3"),
        ({"chunk_tokens": 1}, "chunk_tokens must be 2 or more"),
        ({"clamp": 0.0}, "clamp must be above 0"),
        ({"kl": -1.0}, "kl must be 0 or more"),
    ):
        with pytest.raises(UsageError, match=message):
            ROME(own, **options)
    with pytest.raises(UsageError, match=r"layer 1's feed-forward values .* byheart calibrate tiny-llama --layers 1"):
        edited(ROME(own, **HOW), FACT)
