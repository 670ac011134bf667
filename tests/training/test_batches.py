"""Batches of given episodes: each episode once per pass, dealt by length, cut to the model's positions."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, strategies as st

from byheart.errors import UsageError
from byheart.protocol.episode import Batch, Episode, collate
from byheart.training.batches import Shuffled, collate_all, fit_positions, open_batches, write_others


def episode(lengths: tuple[int, ...], target: int, *, name: int = 5) -> Episode:
    """Segments of these lengths and a target; its first token is a name."""
    tokens = torch.arange(100, 100 + sum(lengths))
    return Episode(tuple(tokens.split(list(lengths))) if lengths else (), torch.tensor([name, *range(3, 2 + target)]))


def names(batch: Batch) -> list[int]:
    return batch.target[:, 0].tolist()


def naive_fit(batch: Batch, positions: int) -> list[list[list[int]]]:
    """Each episode's segments without its oldest text, token by token; segments that all have lost go."""
    room = positions - batch.target.shape[1]
    kept: list[list[list[int]]] = []
    for row in range(batch.target.shape[0]):
        segments = [batch.segments[row, n][batch.mask[row, n]].tolist() for n in range(batch.segments.shape[1])]
        while sum(map(len, segments)) > room:
            next(segment for segment in segments if segment).pop(0)
        kept.append(segments)
    whole = [n for n in range(batch.segments.shape[1]) if all(segments[n] for segments in kept)]
    return [[segments[n] for n in whole] for segments in kept]


# ---- cut to the positions ----


@given(st.lists(st.lists(st.integers(1, 6), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(5, 24))
def test_what_is_cut_is_what_a_token_by_token_cut_leaves(lengths: list[list[int]], positions: int) -> None:
    batch = collate([episode(tuple(one), 4) for one in lengths])
    fitted = fit_positions(batch, positions, cut=True)
    expected = naive_fit(batch, positions)
    count = len(expected[0])
    assert fitted.segments.shape[1] == (count if int(batch.mask.sum((1, 2)).max()) + 4 > positions else 3)
    for row, segments in enumerate(expected):
        for n, segment in enumerate(segments[-count:] if count else []):
            assert fitted.segments[row, n][fitted.mask[row, n]].tolist() == segment
    assert int(fitted.mask.sum((1, 2)).max()) + 4 <= max(positions, 4)


def test_a_batch_that_fits_is_left_as_it_is() -> None:
    batch = collate([episode((3, 4), 5)])
    assert fit_positions(batch, 12, cut=True) is batch
    assert fit_positions(batch, 12, cut=False) is batch


def test_one_token_too_many_is_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"has 12 tokens, 5 of them its target; .* for 11\. .*too_long = 'cut'"):
        fit_positions(collate([episode((3, 4), 5)]), 11, cut=False)


def test_a_target_that_leaves_no_room_cannot_be_cut() -> None:
    batch = collate([episode((3,), 5)])
    assert fit_positions(batch, 6, cut=True).mask.sum() == 1
    with pytest.raises(UsageError, match="the model has positions for 5"):
        fit_positions(batch, 5, cut=True)


def test_cutting_leaves_its_argument_alone() -> None:
    batch = collate([episode((3, 4), 5)])
    before = batch.segments.clone(), batch.mask.clone()
    fit_positions(batch, 9, cut=True)
    assert torch.equal(batch.segments, before[0])
    assert torch.equal(batch.mask, before[1])


# ---- shuffled ----


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(1, 13))
def test_each_pass_sees_every_episode_once(batch: int, packed: int, seed: int, count: int) -> None:
    draw = random.Random(seed)
    episodes = [episode((2,) * draw.randint(1, 2), draw.randint(2, 6), name=name) for name in range(count)]
    shuffled = Shuffled(episodes, batch, packed, seed)
    by_segments = Counter(len(one.segments) for one in episodes)
    per_pass = sum(-(-number // batch) for number in by_segments.values())
    for start in (0, per_pass):
        drawn = [shuffled(number) for number in range(start, start + per_pass)]
        assert sorted(name for one in drawn for name in names(one)) == list(range(count))
        assert all(len(names(one)) <= batch for one in drawn)


def test_a_batch_depends_on_its_number_and_the_seed_alone() -> None:
    episodes = [episode((2,), 3, name=name) for name in range(9)]
    forwards, backwards = Shuffled(episodes, 2, 1, seed=1), Shuffled(episodes, 2, 1, seed=1)
    expected = [names(forwards(number)) for number in range(15)]
    assert [names(backwards(number)) for number in reversed(range(15))] == expected[::-1]
    assert [names(Shuffled(episodes, 2, 1, seed=2)(number)) for number in range(15)] != expected


def test_packing_deals_by_length_within_what_is_drawn_together() -> None:
    episodes = [episode((), target, name=target) for target in (9, 2, 8, 3, 7, 4, 6, 5)]
    shuffled = Shuffled(episodes, 2, 4, seed=0)
    drawn = sorted(sorted(names(shuffled(number))) for number in range(4))
    assert drawn == [[2, 3], [4, 5], [6, 7], [8, 9]]


def test_no_episodes_are_refused() -> None:
    with pytest.raises(UsageError, match="There are no episodes to train on"):
        Shuffled([], 2, 1, seed=0)


# ---- what decides them ----


def test_what_decides_the_batches_is_their_contents() -> None:
    episodes = [episode((2,), 3, name=name) for name in range(3)]
    record = Shuffled(episodes, 2, 1, seed=0).made_of()
    assert record.keys() == {"episodes", "batch"}
    assert Shuffled(list(episodes), 2, 1, seed=9).made_of() == record
    assert Shuffled(episodes[:2], 2, 1, seed=0).made_of() != record
    assert Shuffled(episodes[::-1], 2, 1, seed=0).made_of() != record
    assert Shuffled(episodes, 3, 1, seed=0).made_of() == {**record, "batch": 3}
    assert Shuffled(episodes, 2, 2, seed=0).made_of() == {**record, "packed": 2}


def test_a_function_of_numbers_is_taken_as_it_is() -> None:
    def batches(number: int) -> Batch:
        return collate([episode((2,), 3, name=number)])

    opened, record = open_batches(batches, 2, 1, seed=0)
    assert opened is batches
    assert record == {}
    opened, record = open_batches([episode((2,), 3, name=7)], 2, 1, seed=0)
    assert names(opened(0)) == [7]
    assert record["batch"] == 2


# ---- held-out examples ----


def test_batches_and_episodes_can_be_mixed() -> None:
    whole = collate([episode((2,), 3, name=1)])
    loose = [episode((2,), 3, name=2), episode((1, 1), 3, name=3), episode((2,), 3, name=4), episode((2,), 3, name=5)]
    batches = collate_all([loose[0], whole, *loose[1:]], 2)
    assert batches[0] is whole
    assert [names(one) for one in batches[1:]] == [[2, 4], [5], [3]]
    assert collate_all([], 2) == []


def test_other_batches_texts_stand_after_a_batchs_own() -> None:
    batches = [collate([episode((2, 3), 3)]), collate([episode((4, 1), 3), episode((1, 1), 4)])]
    first, second = write_others(batches, 2)
    assert (first.segments.shape, second.segments.shape) == ((1, 6, 4), (2, 6, 4))
    own, other = batches
    for place, (batch, source, index) in enumerate([(first, own, 0), (first, own, 1), (first, other, 0)]):
        assert batch.rows(place)[0].tolist() == source.rows(index)[0].tolist()
    assert second.rows(2)[1].tolist() == own.rows(0)[0].tolist()
    assert torch.equal(first.target, own.target)
    with pytest.raises(UsageError, match="here is one alone"):
        write_others(batches[:1], 1)
