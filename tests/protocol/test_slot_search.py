"""What a prompt finds, against loops over single slots."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st

from byheart.model.reading import KV
from byheart.protocol.slot_search import (
    FoundSlots,
    Projector,
    best_slots,
    gather_layer,
    put_slots,
    search_loss,
    slot_scores,
)
from byheart.protocol.state import State

L, H, W, P = 2, 2, 4, 3


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slots(count: int, *, seed: int = 0, batch: int = 1) -> FoundSlots:
    keys, values = (tuple(numbers(batch, H, count, W, seed=seed + n + k) for n in range(L)) for k in (0, 10))
    stamp = torch.arange(count).expand(batch, L, -1)
    return FoundSlots(KV(keys, values), numbers(batch, L, count, P, seed=seed), stamp)


@given(
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=12),
    seed=st.integers(0, 100),
    slots=st.integers(0, 13),
)
def test_the_best_are_the_newest_of_equals_and_stand_by_age(scores: list[float], seed: int, slots: int) -> None:
    stamps = torch.randint(0, 4, (len(scores),), generator=torch.Generator().manual_seed(seed)).tolist()
    best = sorted(range(len(scores)), key=lambda n: (-scores[n], -stamps[n], -n))[:slots]
    expected = sorted(best, key=lambda n: (stamps[n], -n))
    assert best_slots(torch.tensor([scores]), torch.tensor([stamps]), slots).tolist() == [expected]


def test_scores_are_the_mean_over_the_prompt_of_a_sigmoid() -> None:
    queries, addresses = numbers(2, 70, P), numbers(2, 5, P, seed=1)
    found = slot_scores(queries, addresses)
    for row in range(2):
        for slot in range(5):
            each = [1 / (1 + math.exp(-float(query @ addresses[row, slot]))) for query in queries[row]]
            assert float(found[row, slot]) == pytest.approx(sum(each) / 70, abs=1e-6)
    assert slot_scores(queries, addresses[:, :0]).shape == (2, 0)
    assert slot_scores(queries.bfloat16(), addresses.bfloat16()).dtype == torch.float32


def test_the_loss_weighs_both_sides_alike() -> None:
    scores, own = torch.tensor([0.9, 0.2, 0.4]), torch.tensor([True, False, False])
    expected = (-math.log(0.9) - (math.log(0.8) + math.log(0.6)) / 2) / 2
    assert float(search_loss(scores, own)) == pytest.approx(expected, abs=1e-4)
    assert float(search_loss(scores[:1], own[:1])) == pytest.approx(-math.log(0.9) / 2, abs=1e-4)
    assert math.isfinite(float(search_loss(torch.tensor([0.0, 1.0]), torch.tensor([True, False]))))


def test_a_silent_projector_finds_all_alike_and_learns() -> None:
    query, address = Projector(L, 8, P, seed=0, silent=True), Projector(L, 8, P, seed=1)
    hidden = numbers(1, L, 6, 8)
    queries, addresses = query(hidden), address(hidden)
    assert queries.shape == (1, L, 6, P)
    scores = slot_scores(queries[:, 0], addresses[:, 0])
    assert torch.equal(scores, torch.full((1, 6), 0.5))
    (scores * torch.arange(6)).sum().backward()
    assert query.outer.grad is not None
    assert bool(query.outer.grad.any())


def test_a_projector_of_one_layer_is_that_layers() -> None:
    projector, hidden = Projector(L, 8, P, seed=3), numbers(1, L, 4, 8)
    for layer in range(L):
        torch.testing.assert_close(projector(hidden[:, layer : layer + 1], layer)[:, 0], projector(hidden)[:, layer])
    torch.testing.assert_close(projector(3 * hidden), projector(hidden), rtol=1e-3, atol=1e-5)


def test_slots_go_into_a_state_and_come_back() -> None:
    made = slots(3)
    state: State = {**made.to_state("some_"), "keys.0": torch.zeros(1)}
    back = FoundSlots.of(state, "some_")
    assert all(
        torch.equal(*pair) for pair in zip(back.kv.keys + back.kv.values, made.kv.keys + made.kv.values, strict=True)
    )
    assert torch.equal(back.address, made.address)
    assert torch.equal(back.stamp, made.stamp)
    with pytest.raises(KeyError, match=r"other_keys\.0"):
        FoundSlots.of(state, "other_")


def test_slots_are_chosen_by_layer_with_all_that_belongs_to_them() -> None:
    made, where = slots(4, batch=2), torch.tensor([[[3, 0], [1, 1]], [[0, 2], [2, 3]]])
    found = made.gather(where)
    for b in range(2):
        for layer in range(L):
            for place, slot in enumerate(where[b, layer].tolist()):
                assert torch.equal(found.kv.keys[layer][b, :, place], made.kv.keys[layer][b, :, slot])
                assert torch.equal(found.address[b, layer, place], made.address[b, layer, slot])
                assert found.stamp[b, layer, place] == slot


@pytest.mark.parametrize(("first", "second"), [(3, 2), (0, 5), (5, 0)])
def test_two_stores_are_one_after_the_other(first: int, second: int) -> None:
    one, two = slots(first, batch=2), slots(second, batch=2, seed=5)
    joined, where = one.append(two).kv, torch.tensor([[4, 0, 2], [1, 3, 3]])
    for layer in range(L):
        keys, values = gather_layer(one.kv, two.kv, layer, where)
        for b in range(2):
            assert torch.equal(keys[b], joined.keys[layer][b][:, where[b]])
            assert torch.equal(values[b], joined.values[layer][b][:, where[b]])


def test_new_slots_take_places_and_lengthen_what_is_there() -> None:
    old, new = torch.arange(3).view(1, 1, 3), torch.tensor([[[10, 11]]])
    assert put_slots(old, new, torch.tensor([[[1, 3]]])).tolist() == [[[0, 10, 2, 11]]]
    wide = put_slots(old[..., None].expand(1, 1, 3, 2), new[..., None].expand(1, 1, 2, 2), torch.tensor([[[2, 0]]]))
    assert wide.tolist() == [[[[11, 11], [1, 1], [10, 10]]]]
