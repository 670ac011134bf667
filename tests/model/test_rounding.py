"""Rounded rotary angles: the tables are those of the published geometry, and memories stand at the same ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import UnsupportedModelError
from byheart.model.backbone import Backbone
from byheart.model.rope import ROUNDED
from byheart.testing import tiny_backbone
from tests.naive import rounded_rope

# Width of a head, base, and what positions are divided by, of memoryllm-7b and memoryllm-8b.
SEVEN, EIGHT = (128, 10000.0, 7936 / 4096), (128, 500000.0, 1.8125)
POSITIONS = 7936
FLOAT16 = {"to": "float16", "whole": True, "factor": 1.0}


def rounded(width: int, base: float, factor: float, *, to: str, whole: bool, **settings: Any) -> Backbone:
    rope = {"rope_type": "linear", "rope_theta": base, "factor": factor}
    given = {"max_position_embeddings": POSITIONS, "num_hidden_layers": 1, "head_dim": width, **settings}
    return tiny_backbone(**given, rope_parameters=rope, **{ROUNDED: {"to": to, "whole": whole, "factor": factor}})


def table(backbone: Backbone, count: int) -> tuple[Tensor, Tensor]:
    """The model's own cosine and sine (count, W), in float32."""
    ((module, _),) = backbone.anatomy.tables
    cos, sin = module(torch.zeros(1, 1, 1), torch.arange(count)[None])
    return cos[0], sin[0]


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_the_7bs_table_is_made_in_the_shorter_type_alone(to: str) -> None:
    width, base, factor = SEVEN
    backbone = rounded(*SEVEN, to=to, whole=True)
    exact = table(backbone, POSITIONS)
    with backbone.anatomy.as_rounded():
        found = table(backbone, POSITIONS)
    expected = rounded_rope.interpolated(width, base, POSITIONS, getattr(torch, to), shrink=1 / factor)
    for part, own, one in zip(found, expected, exact, strict=True):
        assert torch.equal(part, own.float())
        assert (part - one).abs().max() > 0.1
    # Beyond 2,048 whole numbers have no float16 of their own, and positions fall together.
    assert torch.equal(found[0][7681], found[0][7682])
    assert all(map(torch.equal, table(backbone, POSITIONS), exact))


def test_the_8bs_frequencies_alone_are_rounded() -> None:
    width, base, factor = EIGHT
    backbone = rounded(*EIGHT, to="bfloat16", whole=False)
    with backbone.anatomy.as_rounded():
        found = table(backbone, POSITIONS)
    expected = rounded_rope.scaled(width, base, POSITIONS, torch.bfloat16, factor=factor)
    for part, own in zip(found, expected, strict=True):
        torch.testing.assert_close(part, own.float())


@pytest.mark.parametrize("whole", [True, False])
def test_a_key_that_is_moved_is_the_one_that_the_model_makes_there(whole: bool) -> None:
    backbone = rounded(8, 10000.0, 1.9375, to="float16", whole=whole)
    tokens = torch.arange(3, 103)[None]
    kept = backbone.prefill(tokens)
    with torch.no_grad():
        made = backbone.project([backbone.embed(tokens)])
    moved = backbone.rotate(made, torch.arange(100))
    torch.testing.assert_close(moved.keys[0], kept.keys[0])
    exact = tiny_backbone(num_hidden_layers=1, rope_parameters=backbone.config.rope_parameters)
    assert (exact.rotate(made, torch.arange(100)).keys[0] - kept.keys[0]).abs().max() > 1e-3
    assert exact.fingerprint != backbone.fingerprint


@pytest.mark.parametrize(
    ("said", "settings", "match"),
    [
        ("float16", {}, "it must have 'to'"),
        ({**FLOAT16, "to": "float8"}, {}, "one of float16, bfloat16"),
        ({**FLOAT16, "factor": 0}, {}, "a number above 0"),
        (FLOAT16, {"max_position_embeddings": 1 << 17}, "none beyond 65,504, but the model reads 131,072"),
        (FLOAT16, {"family": "gpt2"}, "same rotary positions"),
        (FLOAT16, {"family": "gemma3_text", "num_hidden_layers": 6}, "same rotary positions"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(said: object, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedModelError, match=match):
        tiny_backbone(**settings, **{ROUNDED: said})
