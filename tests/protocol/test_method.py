"""What a method gets from the protocol when it gives no more than ``init``, ``write`` and ``read``."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from byheart.methods import build
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol.episode import Episode, collate
from byheart.protocol.method import Method
from byheart.protocol.state import State, stack, unstack
from tests.samples import METHODS, OPTIONS, backbone, fresh, hooks, same, stir, tokens, written


class Sum(Method):
    """Keeps the sum of all tokens, and remembers how often the model was asked."""

    name = "sum"

    def __init__(self, backbone: Backbone, *, start: int = 0, weights: tuple[float, ...] = (1.0, 2.0)) -> None:
        Method.__init__(self, backbone)
        self.start, self.weights = start, list(weights)
        self.scale = nn.Parameter(torch.ones(2))
        self.writes: list[tuple[int, ...]] = []

    def init(self) -> State:
        return {"sum": torch.full((1,), self.start)}

    def write(self, state: State, segment: Tensor) -> State:
        self.writes.append(tuple(segment.shape))
        total = state["sum"] + segment.sum(1)
        # Its shape depends on what was written: sessions of two shapes cannot share a pass.
        return {"sum": total, "parity": torch.zeros(len(total), 1 + segment.shape[1] % 2)}

    def read(self, state: State) -> Reading:
        return Reading(batch=state["sum"].shape[0])


@pytest.mark.parametrize("missing", ["init", "write", "read"])
def test_a_class_without_one_of_the_three_cannot_be_instantiated(missing: str) -> None:
    methods: dict[str, Any] = {name: getattr(Sum, name) for name in ("init", "write", "read") if name != missing}
    with pytest.raises(TypeError, match=missing):
        type("Partial", (Method,), {"name": "partial", **methods})(backbone())


def test_without_more_a_text_is_one_piece_and_all_of_a_state_is_read() -> None:
    method, text = Sum(backbone()), tokens(9)
    assert [piece is text for piece in method.pieces(text)] == [True]
    state = method.init()
    assert method.select(state, text[0]) is state
    assert (method.capacity, method.text_format, method.size) == (None, "text", None)


def test_options_are_the_arguments_in_types_that_json_has() -> None:
    method = Sum(backbone(), start=3, weights=(0.5,))
    assert method.options() == {"start": 3, "weights": [0.5]}
    assert json.loads(json.dumps(method.options())) == method.options()


def test_a_method_writes_without_a_graph_until_it_is_trained() -> None:
    method = Sum(backbone())
    assert not method.training
    assert method.train().training


@pytest.mark.parametrize("name", METHODS)
def test_the_backbone_is_no_part_of_what_is_learned(name: str) -> None:
    method = fresh(name, backbone())
    inside = {id(parameter) for parameter in method.backbone.model.parameters()}
    assert not inside & {id(parameter) for parameter in method.parameters()}


def test_a_fingerprint_is_that_of_the_learned_parts() -> None:
    method, twin = Sum(backbone()), Sum(backbone(), start=9)
    assert method.fingerprint == twin.fingerprint
    with torch.no_grad():
        twin.scale[1] = 1.001
    assert method.fingerprint != twin.fingerprint


# ---- many sessions at once ----


def test_sessions_of_one_shape_are_written_in_one_pass_and_others_apart() -> None:
    method = Sum(backbone())
    states: list[State] = [method.init() for _ in range(3)]
    states += [method.write(method.init(), tokens(4)), method.write(method.init(), tokens(3))]
    segments = [tokens(5, seed=1), tokens(6, seed=2), tokens(5, seed=3), tokens(5, seed=4), tokens(5, seed=5)]
    method.writes.clear()
    after = method.write_many(states, segments)
    # The first and third share a shape and a length; the last two have states of other shapes.
    assert sorted(method.writes) == [(1, 5), (1, 5), (1, 6), (2, 5)]
    expected = [int(state["sum"]) + int(segment.sum()) for state, segment in zip(states, segments, strict=True)]
    assert [int(state["sum"]) for state in after] == expected


def test_no_sessions_are_no_writes() -> None:
    method = Sum(backbone())
    assert method.write_many([], []) == []
    assert method.writes == []


def test_as_many_sessions_as_segments_are_needed() -> None:
    method = Sum(backbone())
    with pytest.raises(ValueError, match="zip"):
        method.write_many([method.init()], [tokens(3), tokens(3)])


def test_sessions_written_together_share_no_memory() -> None:
    method = Sum(backbone())
    first, second = method.write_many([method.init(), method.init()], [tokens(3), tokens(3, seed=1)])
    first["sum"].zero_()
    assert int(second["sum"]) == int(tokens(3, seed=1).sum())


def test_stacked_states_come_apart_again() -> None:
    method = fresh("window", backbone())
    states = [written(method, tokens(20, seed=seed)) for seed in range(3)]
    for state, apart in zip(states, unstack(stack(states)), strict=True):
        same(apart, state)


# ---- learning ----


def test_the_default_loss_writes_every_segment_once_and_leaves_no_hook() -> None:
    method = Sum(backbone())
    episodes = [Episode((tokens(4 + n)[0], tokens(3)[0]), tokens(6, seed=n)[0], answer=2) for n in range(2)]
    loss = method.loss(collate(episodes))
    assert loss.shape == ()
    assert loss.isfinite()
    # First segments differ in length, the second ones do not; after them the states have one shape again or two.
    assert sum(rows for rows, _ in method.writes) == 4
    assert hooks(method.backbone) == []


def test_a_method_that_reads_nothing_loses_what_the_plain_model_loses() -> None:
    episode = Episode((tokens(4)[0],), tokens(6, seed=1)[0], answer=1)
    method, floor = Sum(backbone()), fresh("nothing", backbone())
    torch.testing.assert_close(method.loss(collate([episode])), floor.loss(collate([episode])))


@pytest.mark.parametrize("name", ["latent-pool", "compressed-kv", "adapter"])
def test_what_is_not_trained_has_one_name_whatever_its_last_digits(name: str) -> None:
    method = build(name, backbone(), **OPTIONS[name])
    assert method.fingerprint == "untrained"
    stir(method, size=1e-7)
    assert method.fingerprint not in ("untrained", build(name, backbone(), **OPTIONS[name]).fingerprint)
    twin = build(name, backbone(), **OPTIONS[name])
    twin.load_state_dict(method.state_dict())
    assert twin.fingerprint == method.fingerprint


def test_a_method_made_in_inference_mode_is_named_by_its_values() -> None:
    with torch.inference_mode():
        method = build("latent-pool", backbone(), **OPTIONS["latent-pool"])
        name = method.fingerprint
        stir(method)
    assert "untrained" != name != method.fingerprint
