"""Whom the last tokens attend to, against the probabilities that eager attention gives."""

from __future__ import annotations

import pytest
import torch

from byheart.model.observed_attention import observing, observing_queries
from byheart.model.reading import Reading
from byheart.testing import tiny_backbone, tiny_model
from tests.samples import ALL_FAMILIES, backbone, tokens

TEXT = tokens(30, seed=1)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 4, 40])
@pytest.mark.parametrize("window", [512, 8], ids=["wide", "sliding"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_what_is_received_are_eager_probabilities(family: str, window: int, rows: int) -> None:
    """The text's end after the keys and values of its beginning, against the whole text."""
    settings = {"sliding_window": window} if family in ("mistral", "phi3", "gemma2", "gemma3_text") else {}
    own, eager = tiny_backbone(family, **settings), tiny_model(family, **settings)
    eager.set_attn_implementation("eager")
    given = eager(TEXT, output_attentions=True).attentions
    with observing(rows) as seen, own.reading([Reading()]) as cache:
        own.hidden(TEXT[:, :20], cache=cache)
        seen.layers.clear()
        own.hidden(TEXT[:, 20:], cache=cache)
    assert len(seen.layers) == len(given)
    for ours, theirs in zip(seen.layers, given, strict=True):
        expected = theirs[:, :, -min(rows, 10) :].unflatten(1, (ours.shape[1], -1)).mean((2, 3))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_nobody_observes_afterwards() -> None:
    own = backbone()
    with pytest.raises(ZeroDivisionError), observing(2) as seen:
        raise ZeroDivisionError
    own.hidden(TEXT)
    assert seen.layers == []


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "granite"])
def test_queries_give_scores(family: str) -> None:
    own = tiny_backbone(family)
    with observing(1) as seen, own.reading([Reading()]) as cache, observing_queries() as queries:
        own.hidden(TEXT, cache=cache)
    own.hidden(TEXT)
    assert len(queries) == len(own.layers)
    for query, keys, received in zip(queries, cache.release().keys, seen.layers, strict=True):
        scores = query[:, :, -1].unflatten(1, (keys.shape[1], -1)) @ keys.mT
        torch.testing.assert_close(scores.softmax(-1).mean(2), received, rtol=0, atol=1e-5)
