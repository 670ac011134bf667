"""The growing cache against plain concatenation, and the bookkeeping of rows of different lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from byheart.model.kv_cache import GrowingLayer, KeyValueTap, PrefixCache, Tapped
from byheart.model.reading import KV, Reading
from tests.samples import backbone, tokens

H, W = 2, 4


def pair(rows: int, *, seed: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, H, rows, W, generator=generator),
        torch.randn(batch, H, rows, W, generator=generator),
    )


def prefix(rows: int, *, seed: int = 0, layers: int = 2) -> KV:
    made = [pair(rows, seed=seed + index) for index in range(layers)]
    return KV(tuple(k for k, _ in made), tuple(v for _, v in made))


def held(layer: GrowingLayer) -> tuple[Tensor, Tensor]:
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values


# ---- one layer ----


@torch.no_grad()
@given(
    steps=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12)), min_size=1, max_size=12),
    room=st.integers(0, 30),
    start=st.integers(0, 9),
)
def test_a_layer_holds_what_was_appended_and_not_cropped(steps: list[tuple[int, int]], room: int, start: int) -> None:
    layer = GrowingLayer()
    keys, values = pair(start, seed=99)
    if start:
        layer.hold(keys, values, room, torch.float32)
    for n, (rows, forgotten) in enumerate(steps):
        new = pair(rows, seed=n)
        ours = layer.update(*new)
        keys, values = torch.cat([keys, new[0]], dim=2), torch.cat([values, new[1]], dim=2)
        assert torch.equal(ours[0], keys)
        assert torch.equal(ours[1], values)
        assert layer.get_seq_length() == keys.shape[2]
        left = keys.shape[2] - min(forgotten, keys.shape[2] - 1)
        layer.crop(left - keys.shape[2])
        keys, values = keys[:, :, :left], values[:, :, :left]
        assert torch.equal(held(layer)[0], keys)
        assert torch.equal(held(layer)[1], values)


@torch.no_grad()
def test_a_layer_grows_in_place_while_there_is_room() -> None:
    layer = GrowingLayer()
    layer.hold(*pair(3, seed=0), 5, torch.float32)
    place = held(layer)[0].data_ptr()
    layer.update(*pair(5, seed=1))
    assert held(layer)[0].data_ptr() == place
    layer.update(*pair(1, seed=2))
    assert held(layer)[0].data_ptr() != place


@torch.no_grad()
def test_a_layer_copies_what_it_is_given_to_hold() -> None:
    layer, (keys, values) = GrowingLayer(), pair(3, seed=0)
    before = keys.clone()
    layer.hold(keys, values, 5, torch.float32)
    held(layer)[0].zero_()
    assert torch.equal(keys, before)


def test_gradients_flow_through_an_appended_layer_as_through_concatenation() -> None:
    def run(append: bool) -> tuple[Tensor, ...]:
        parts = [part.requires_grad_() for n in range(3) for part in pair(2 + n, seed=n)]
        layer = GrowingLayer()
        layer.hold(parts[0], parts[1], 20, torch.float32)
        loss = torch.zeros(())
        for n in (1, 2):
            if append:
                keys, values = layer.update(parts[2 * n], parts[2 * n + 1])
            else:
                keys, values = (torch.cat([parts[2 * m + side] for m in range(n + 1)], dim=2) for side in (0, 1))
            loss = loss + (keys.sin() * values * values).sum()
        loss.backward()
        return tuple(part.grad for part in parts if part.grad is not None)

    ours, naive = run(append=True), run(append=False)
    assert len(ours) == 6
    torch.testing.assert_close(ours, naive)


@torch.no_grad()
def test_a_layer_whose_rows_were_reordered_goes_on_from_the_new_order() -> None:
    """Beam search does this."""
    layer = GrowingLayer()
    keys, values = pair(3, seed=0, batch=2)
    layer.hold(keys, values, 9, torch.float32)
    layer.reorder_cache(torch.tensor([1, 1]))
    new = pair(1, seed=1, batch=2)
    ours = layer.update(*new)
    assert torch.equal(ours[0], torch.cat([keys[[1, 1]], new[0]], dim=2))
    assert torch.equal(ours[1], torch.cat([values[[1, 1]], new[1]], dim=2))


@torch.no_grad()
@pytest.mark.parametrize("change", ["batch_repeat_interleave", "batch_select_indices"])
def test_a_layer_whose_batch_was_changed_goes_on_from_the_new_batch(change: str) -> None:
    layer = GrowingLayer()
    keys, values = pair(3, seed=0, batch=2)
    layer.hold(keys, values, 9, torch.float32)
    getattr(layer, change)(3 if change == "batch_repeat_interleave" else torch.tensor([1]))
    rows = [0, 0, 0, 1, 1, 1] if change == "batch_repeat_interleave" else [1]
    new = pair(1, seed=1, batch=len(rows))
    assert torch.equal(layer.update(*new)[0], torch.cat([keys[rows], new[0]], dim=2))


# ---- all layers ----


@torch.no_grad()
def test_shorter_prefixes_are_padded_on_the_left() -> None:
    readings = [Reading(prefix(5, seed=1)), Reading(), Reading(prefix(2, seed=2))]
    cache = PrefixCache.of(readings, layers=2, dtype=torch.float32)
    assert cache.get_seq_length() == 5
    assert cache.valid is not None
    assert cache.valid.int().tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
    for index in range(2):
        rows = cache.rows_from(0).keys[index]
        assert torch.equal(rows[0], readings[0].prefix.keys[index][0])
        assert torch.equal(rows[2, :, 3:], readings[2].prefix.keys[index][0])


@torch.no_grad()
def test_equal_prefixes_need_no_mask() -> None:
    cache = PrefixCache.of([Reading(prefix(3, seed=1)), Reading(prefix(3, seed=2))], layers=2, dtype=torch.float32)
    assert cache.valid is None
    mask, positions = cache.step(torch.zeros(2, 4, 8))
    assert mask is None
    assert positions.tolist() == [[3, 4, 5, 6]] * 2


@torch.no_grad()
def test_positions_and_mask_of_every_row_count_its_own_rows() -> None:
    cache = PrefixCache.of([Reading(prefix(3, seed=1)), Reading(prefix(1, seed=2))], layers=2, dtype=torch.float32)
    counts = torch.tensor([[True, True, True], [False, True, True]])
    mask, positions = cache.step(torch.zeros(2, 3, 8), counts)
    assert mask is not None
    assert mask.int().tolist() == [[1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 1, 1]]
    assert positions[0].tolist() == [3, 4, 5]
    assert positions[1, 1:].tolist() == [1, 2]
    for layer in cache.layers:
        layer.update(*pair(3, seed=5, batch=2))
    mask, positions = cache.step(torch.zeros(2, 1, 8))
    assert mask is not None
    assert positions.tolist() == [[6], [3]]
    cache.crop(-1)
    assert cache.get_seq_length() == 5
    assert cache.valid is not None
    assert cache.valid.shape == (2, 6)


@torch.no_grad()
def test_padding_alone_makes_a_mask() -> None:
    cache = PrefixCache.of([Reading(prefix(2))], layers=2, dtype=torch.float32)
    mask, positions = cache.step(torch.zeros(1, 3, 8), torch.tensor([[False, True, True]]))
    assert mask is not None
    assert mask.int().tolist() == [[1, 1, 0, 1, 1]]
    assert positions[0, 1:].tolist() == [2, 3]


@torch.no_grad()
def test_nothing_to_hold_is_an_empty_cache() -> None:
    cache = PrefixCache.of([Reading(), Reading()], layers=2, dtype=torch.float32)
    assert cache.get_seq_length() == 0
    assert cache.valid is None


@torch.no_grad()
def test_a_prefix_of_another_type_takes_the_models() -> None:
    cache = PrefixCache.of([Reading(prefix(3))], layers=2, dtype=torch.bfloat16)
    assert {k.dtype for k in cache.rows_from(0).keys} == {torch.bfloat16}


@torch.no_grad()
def test_rows_taken_out_are_copies() -> None:
    cache = PrefixCache.of([Reading(prefix(4))], layers=2, dtype=torch.float32)
    taken = cache.rows_from(1, 3)
    assert taken.slots == 2
    expected = taken.keys[0].clone()
    cache.crop(-3)
    for layer in cache.layers:
        layer.update(*pair(3, seed=9))
    assert torch.equal(taken.keys[0], expected)


@torch.no_grad()
def test_released_slots_are_those_of_the_cache_itself() -> None:
    cache = PrefixCache.of([Reading(prefix(4))], layers=2, dtype=torch.float32)
    copied, released = cache.rows_from(0), cache.release()
    assert all(map(torch.equal, (*copied.keys, *copied.values), (*released.keys, *released.values)))
    assert [part.data_ptr() for part in released.keys] == [held(layer)[0].data_ptr() for layer in cache.layers]


@torch.no_grad()
def test_slots_of_some_layers_are_appended_and_taken_out() -> None:
    cache, lower, upper = PrefixCache(3), prefix(5, layers=1), prefix(5, seed=7)
    cache.append(lower)
    cache.append(upper, start=1)
    assert torch.equal(cache.rows_from(0, layers=1).keys[0], lower.keys[0])
    taken = cache.rows_from(2)
    assert len(taken.keys) == 3
    assert torch.equal(taken.values[2], upper.values[1][:, :, 2:])


def test_a_tap_takes_the_first_keys_and_stops() -> None:
    tap, (keys, values) = KeyValueTap(1), pair(2, seed=0)
    with pytest.raises(Tapped):
        tap.update(keys, values, 0)
    assert tap.taken == (keys, values)


def test_a_cache_filled_in_inference_mode_serves_outside_of_it() -> None:
    """Decoding runs in inference mode; what its cache holds is used again by whoever lent it."""
    own = backbone()
    with own.reading([Reading()], room=2) as cache:
        with torch.inference_mode():
            own.hidden(tokens(5), cache=cache)
        with torch.no_grad():
            for left in (2, 0):
                cache.crop(left - cache.get_seq_length())
                again = own.hidden(tokens(6), cache=cache)
                whole = own.hidden(torch.cat([tokens(5)[:, :left], tokens(6)], dim=1))
                torch.testing.assert_close(again, whole[:, left:])


def test_beam_search_over_a_reading_equals_beam_search_over_the_text() -> None:
    own, text, prompt = backbone(), tokens(12, seed=1), tokens(4, seed=2)
    options = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        kept = own.prefill(text)
    rows = [Reading(kept)] * 3
    with own.reading(rows) as cache:
        over = {own.anatomy.cache_argument: cache}
        ours = own.model.generate(prompt, attention_mask=torch.ones(1, 16).long(), **options, **over)
    theirs = own.model.generate(torch.cat([text, prompt], dim=1), attention_mask=torch.ones(1, 16).long(), **options)
    assert ours[0, 4:].tolist() == theirs[0, 16:].tolist()


# ---- rows that leave and join ----


def held_rows(cache: PrefixCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of the first layer, of each row without its padding."""
    keys, values = cache.layers[0].keys, cache.layers[0].values
    valid = cache.valid if cache.valid is not None else torch.ones(len(keys), keys.shape[2], dtype=torch.bool)
    return [(keys[b][:, mask], values[b][:, mask]) for b, mask in enumerate(valid)]


def cache_of(*slots: int, seed: int = 0) -> PrefixCache:
    readings = [Reading(prefix(count, seed=seed + n)) for n, count in enumerate(slots)]
    return PrefixCache.of(readings, layers=2, dtype=torch.float32)


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("slots", [(5, 5, 5), (5, 2, 7), (7, 2, 1)], ids=str)
def test_a_row_that_leaves_is_replaced_by_the_last(slots: tuple[int, ...], row: int) -> None:
    cache, before = cache_of(*slots), held_rows(cache_of(*slots))
    cache.drop(row)
    expected = [before[2] if n == row else pair for n, pair in enumerate(before[:2])]
    for ours, theirs in zip(held_rows(cache), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    for layer in cache.layers:
        assert layer.keys.shape[0] == 2


@pytest.mark.parametrize(("ours", "theirs"), [((5, 5), (5,)), ((5, 2), (9, 1)), ((9,), (2, 2))], ids=str)
def test_rows_that_join_keep_what_they_hold(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    cache = cache_of(*ours)
    cache.join(cache_of(*theirs, seed=10))
    expected = [*held_rows(cache_of(*ours)), *held_rows(cache_of(*theirs, seed=10))]
    for found, wanted in zip(held_rows(cache), expected, strict=True):
        assert all(map(torch.equal, found, wanted))
    assert (cache.valid is None) == (len({*ours, *theirs}) == 1)


def test_columns_that_no_row_uses_are_left_out() -> None:
    cache = cache_of(200, 20, 30)
    before = held_rows(cache)
    cache.drop(0)
    cache.trim()
    assert cache.get_seq_length() == 30
    for found, wanted in zip(held_rows(cache), [before[2], before[1]], strict=True):
        assert all(map(torch.equal, found, wanted))
    cache.drop(1)
    cache.trim()
    assert cache.valid is None


def test_a_few_empty_columns_are_not_worth_a_copy() -> None:
    cache = cache_of(40, 20, 30)
    cache.drop(0)
    cache.trim()
    assert cache.get_seq_length() == 40
