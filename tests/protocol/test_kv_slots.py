"""Slots: joined, mapped, chosen, and as tensors of a state; each against one slot at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from byheart.model.reading import KV
from byheart.protocol.kv_slots import (
    concat,
    gather,
    kv_to_state,
    map_slots,
    prefill_pieces,
    rotate_to_slots,
    state_to_kv,
    top_indices,
)
from tests.samples import ALL_FAMILIES, backbone, tokens


def random_kv(slots: int, *, layers: int = 2, batch: int = 2, heads: int = 3, seed: int = 0) -> KV:
    generator = torch.Generator().manual_seed(seed)

    def parts() -> tuple[Tensor, ...]:
        return tuple(torch.randn(batch, heads, slots, 4, generator=generator) for _ in range(layers))

    return KV(parts(), parts())


def equal(ours: KV, theirs: KV) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours.keys + ours.values, theirs.keys + theirs.values, strict=True))


# ---- joining and mapping ----


def test_new_slots_stand_after_past_ones() -> None:
    past, new = random_kv(3), random_kv(2, seed=1)
    both = concat(past, new)
    assert both.slots == 5
    assert equal(both.slice(0, 3), past)
    assert equal(both.slice(3), new)
    assert concat(None, new) is new


def test_a_map_sees_the_tensors_of_one_layer_and_part_together() -> None:
    first, second = random_kv(3), random_kv(3, seed=1)
    mapped = map_slots(lambda a, b: a - 2 * b, first, second)
    for layer in range(2):
        assert torch.equal(mapped.keys[layer], first.keys[layer] - 2 * second.keys[layer])
        assert torch.equal(mapped.values[layer], first.values[layer] - 2 * second.values[layer])
    assert map_slots(Tensor.double, first).values[1].dtype == torch.float64


# ---- states ----


def test_keys_and_values_come_back_from_a_state() -> None:
    kv = random_kv(3, layers=12)
    state = kv_to_state(kv)
    assert set(state) == {f"{part}.{layer}" for part in ("keys", "values") for layer in range(12)}
    back = state_to_kv({"writes": torch.ones(1), **dict(reversed(state.items()))})
    assert back is not None
    assert equal(back, kv)


@pytest.mark.parametrize("state", [{}, {"writes": torch.ones(1)}, {"tokens": torch.ones(1, 3)}])
def test_a_state_without_keys_has_no_slots(state: dict[str, Tensor]) -> None:
    assert state_to_kv(state) is None


# ---- positions ----


@torch.no_grad()
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_slots_take_the_positions_of_their_places(family: str) -> None:
    """Rotated back by their positions and forward again, a text's own slots are as the model made them."""
    own, text = backbone(family), tokens(9)
    kv = own.prefill(text)
    unrotated = own.rotate(kv, -torch.arange(9))
    again = rotate_to_slots(own, unrotated)
    for ours, theirs in zip(again.keys, kv.keys, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    # Without the first three, each stands three positions earlier.
    shifted, expected = rotate_to_slots(own, unrotated.slice(3)), own.rotate(kv.slice(3), -3)
    for ours, theirs in zip(shifted.keys, expected.keys, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [[9], [4, 5], [1] * 9, [8, 1]])
def test_a_text_read_in_pieces_leaves_the_slots_of_the_whole(lengths: list[int]) -> None:
    own, before, text = backbone(), tokens(6, seed=1), tokens(9)
    past = own.prefill(before)
    whole = own.prefill(torch.cat([before, text], dim=1))
    kv = prefill_pieces(own, text.split(lengths, dim=1), past)
    assert kv is not None
    assert not kv.keys[0].requires_grad
    for ours, theirs in zip(kv.keys + kv.values, whole.keys + whole.values, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-5)


def test_no_pieces_leave_what_was_there() -> None:
    past = random_kv(3)
    assert prefill_pieces(backbone(), [], past) is past
    assert prefill_pieces(backbone(), [], None) is None


# ---- choosing ----


@given(
    scores=st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=12, unique=True),
    slots=st.integers(0, 14),
    sinks=st.integers(0, 3),
    recent=st.integers(0, 3),
)
def test_the_best_slots_and_both_ends_are_chosen_in_order(
    scores: list[float], slots: int, sinks: int, recent: int
) -> None:
    length = len(scores)
    slots = max(slots, min(sinks + recent, length))
    ends = {*range(min(sinks, length)), *range(max(0, length - recent), length)}
    rest = sorted(set(range(length)) - ends, key=lambda place: -scores[place])
    expected = sorted([*ends, *rest[: max(0, slots - len(ends))]])
    chosen = top_indices(torch.tensor(scores)[None, None], slots, sinks=sinks, recent=recent)
    assert chosen[0, 0].tolist() == expected


def test_each_layer_row_and_head_keeps_its_own() -> None:
    kv = random_kv(6)
    indices = [top_indices(keys[..., 0], 3) for keys in kv.keys]
    kept = gather(kv, indices)
    assert kept.slots == 3
    for layer, index in enumerate(indices):
        for row in range(2):
            for head in range(3):
                places = sorted(kv.keys[layer][row, head, :, 0].topk(3).indices.tolist())
                assert index[row, head].tolist() == places
                assert torch.equal(kept.keys[layer][row, head], kv.keys[layer][row, head, places])
                assert torch.equal(kept.values[layer][row, head], kv.values[layer][row, head, places])
