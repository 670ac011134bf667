"""Slots that are turned round in memory: the same answers, and turned only where that is faster."""

from __future__ import annotations

import pytest
import torch

from byheart.generation.decoding import Decoding
from byheart.generation.generate import Generation, Request
from byheart.model import turned_slots
from byheart.model.backbone import Backbone
from byheart.model.few_rows import is_multiplied_by_mkl
from byheart.model.reading import KV, Reading
from byheart.model.shared_prefix import attend_and_weigh
from byheart.model.turned_slots import MOST_QUERIES, attend_turned, is_turned, turn
from byheart.testing import tiny_backbone
from tests.samples import backbone, tokens

NEEDS_MKL = pytest.mark.skipif(not is_multiplied_by_mkl(torch.zeros(1)), reason="turned for MKL alone")


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning is worth it for the small memories of two heads that tests have."""
    monkeypatch.setattr(turned_slots, "FEWEST_SLOTS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


def slots(count: int, *, heads: int = 3, dtype: torch.dtype = torch.float32) -> KV:
    generator = torch.Generator().manual_seed(count)
    keys, values = torch.randn(2, 1, heads, count, 8, generator=generator).to(dtype)
    return KV((keys,), (values,))


def is_all_turned(kv: KV) -> bool:
    return all(map(is_turned, (*kv.keys, *kv.values)))


@NEEDS_MKL
@pytest.mark.parametrize("queries", [1, 5, MOST_QUERIES + 1])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.usefixtures("turns")
def test_turned_slots_give_the_same(queries: int, is_masked: bool) -> None:
    kv, generator = slots(41, heads=2), torch.Generator().manual_seed(1)
    query = torch.randn(1, 2, queries, 8, generator=generator)
    mask = torch.zeros(1, 1, queries, 41).masked_fill_(torch.rand(1, 1, queries, 41, generator=generator) < 0.3, -1e30)
    hidden = mask if is_masked else None
    expected = attend_and_weigh(query, kv.keys[0], kv.values[0], hidden, scaling=0.3)
    turn(kv)
    assert is_all_turned(kv)
    for attend in (attend_and_weigh, attend_turned):
        found = attend(query, kv.keys[0], kv.values[0], hidden, scaling=0.3)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@NEEDS_MKL
@pytest.mark.usefixtures("turns")
def test_scores_that_are_far_apart_give_finite_weights() -> None:
    kv = slots(9, heads=2)
    query = 1e3 * torch.ones(1, 2, 2, 8)
    expected = attend_and_weigh(query, kv.keys[0], kv.values[0], None, scaling=1.0)
    turn(kv)
    for ours, theirs in zip(attend_and_weigh(query, *kv.keys, *kv.values, None, scaling=1.0), expected, strict=True):
        assert bool(ours.isfinite().all())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@NEEDS_MKL
def test_slots_are_turned_in_place_where_threads_do_not_divide_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    few, even, many, half = slots(999), slots(1000, heads=2), slots(1000), slots(1000, dtype=torch.bfloat16)
    held, before = many.keys[0], many.keys[0].clone()
    for kv in (few, even, many, half):
        turn(kv)
    assert [is_all_turned(kv) for kv in (few, even, many, half)] == [False, False, True, False]
    assert is_turned(held)
    assert torch.equal(held, before)
    place = held.data_ptr()
    turn(many)
    assert held.data_ptr() == place


def said(own: Backbone, requests: list[Request]) -> list[list[int]]:
    generation = Generation(own)
    sequences = generation.add(requests, at_once=False)
    while generation.has_unread:
        generation.read(7)
    while generation.running:
        generation.step()
    return [sequence.tokens for sequence in sequences]


@NEEDS_MKL
@pytest.mark.parametrize("settings", [{}, {"sliding_window": 8}])
@pytest.mark.usefixtures("turns")
def test_answers_about_turned_memories_are_the_same(settings: dict[str, int]) -> None:
    own = tiny_backbone("mistral", **settings) if settings else backbone()
    with torch.no_grad():
        one, two = (own.prefill(tokens(length, seed=length)) for length in (20, 9))
    masks = tuple(torch.rand(keys.shape[:3], generator=torch.Generator().manual_seed(0)) < 0.5 for keys in two.keys)
    readings = [Reading(one), Reading(KV(two.keys, two.values, masks)), Reading(one), Reading()]
    requests = [
        Request(tokens(3 + n, seed=n)[0], reading, Decoding(max_tokens=6, temperature=1.5, seed=n))
        for n, reading in enumerate(readings)
    ]
    expected = said(own, requests)
    for kv in (one, two):
        turn(kv)
        assert is_all_turned(kv)
    assert said(own, requests) == expected
