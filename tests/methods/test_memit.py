"""Facts edited by MEMIT: against its formulas, one by one and all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from byheart.errors import UsageError
from byheart.methods.memit import MEMIT
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol import key_moments
from byheart.protocol.fact import Fact
from byheart.protocol.fact_editing import draw_contexts
from byheart.protocol.state import State
from byheart.testing import FIXED_FAMILIES, tiny_backbone, tiny_model
from tests.naive import fact_editing as naive
from tests.samples import backbone, hooks, logits, moments_of, tokens

TEXT = tokens(9, seed=1)[0]
FACT = Fact(TEXT, 3, 7, 9, tokens(5, seed=3)[0], 2)
SECOND = Fact(tokens(9, seed=5)[0], 2, 6, 9, tokens(6, seed=4)[0], 3)
HOW: dict[str, Any] = {"steps": 4, "learning_rate": 0.1, "kl": 0.5, "decay": 0.1, "clamp": 20.0}


def editor(own: Backbone, **options: Any) -> MEMIT:
    moments_of(own)
    return MEMIT(own, **{**HOW, "layers": [0, 1], "contexts": 2, "moments_weight": 3.0, **options})


def edited(made: MEMIT, *facts: Fact) -> State:
    state = made.init()
    for fact in facts:
        [state] = made.write_facts([state], [fact])
    return state


@pytest.mark.parametrize("family", ["llama", "phi3", *FIXED_FAMILIES])
def test_an_edit_is_spread_as_the_formulas_say(family: str) -> None:
    own = tiny_backbone(family)
    made = editor(own)
    contexts = draw_contexts(own, 2, 0)
    model: Any = tiny_model(family).requires_grad_(False)
    last = list(getattr(model.get_decoder(), own.anatomy.stack))[1]
    marks = {"subject": FACT.subject, "start": FACT.start}
    marks |= {"essence": FACT.essence, "essence_subject": FACT.essence_subject}
    wanted = naive.value(model, last, TEXT, contexts, **marks, **HOW)
    state = edited(made, FACT)
    for left, path in zip((2, 1), made.moment_paths, strict=True):
        matrix = model.get_decoder().get_submodule(path)
        key = naive.key(model, matrix, TEXT, contexts, FACT.subject)[:, None]
        share = (wanted - naive.at(model, last, TEXT, FACT.subject))[:, None] / left
        moments = 3.0 * key_moments.require(own, path)
        moments += 1e-4 * moments.diagonal().median() * torch.eye(len(moments))
        expected = naive.least_squares(moments, key, lambda keys, share=share: share)
        found = state[f"up.{path}"][0] @ state[f"down.{path}"][0]
        assert (found - expected).norm() < 2e-2 * expected.norm()
        with torch.no_grad():
            matrix.weight += expected.T if family == "gpt2" else expected
    assert hooks(own) == []


def test_changes_made_one_after_another_are_those_of_all_keys_at_once() -> None:
    """Of given keys and values to store: what each lacks is counted after the changes before it."""
    made = editor(backbone())
    [path, _] = made.moment_paths
    generator = torch.Generator().manual_seed(0)
    keys, wanted = torch.randn(48, 5, generator=generator), torch.randn(32, 5, generator=generator)
    state, total = made.init(), torch.zeros(32, 48)
    for key, value in zip(keys.T, wanted.T, strict=True):
        direction = made.direction(path, state[f"keys.{path}"][0], key)
        state = made.append(state, path, down=direction, up=value - total @ key, keys=key)
        total = state[f"up.{path}"][0] @ state[f"down.{path}"][0]
    moments = 3.0 * key_moments.require(backbone(), path)
    moments += 1e-4 * moments.diagonal().median() * torch.eye(48)
    torch.testing.assert_close(total, naive.least_squares(moments, keys, lambda keys: wanted), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", *FIXED_FAMILIES])
def test_a_fact_is_known_better_after_it_was_edited(family: str) -> None:
    own = tiny_backbone(family)
    made = editor(own, steps=60, learning_rate=0.5, decay=0.0, kl=0.0, clamp=1000.0, moments_weight=1e-3)

    def missed(reading: Reading) -> float:
        said = logits(own, reading, TEXT[None])[0].log_softmax(-1)
        return -sum(float(said[n - 1, TEXT[n]]) for n in (7, 8))

    assert missed(made.read(edited(made, FACT))) < missed(Reading())
    state = edited(made, FACT, SECOND)
    assert {tensor.shape[2 if name.startswith("up") else 1] for name, tensor in state.items()} == {2}


def test_the_layers_end_a_third_of_the_way_up() -> None:
    own = tiny_backbone("llama", num_hidden_layers=18)
    assert MEMIT(own).layers == [2, 3, 4, 5, 6]
    assert MEMIT(backbone()).layers == [0, 1]
    with pytest.raises(UsageError, match="moments_weight must be above 0"):
        MEMIT(backbone(), moments_weight=0.0)
