"""Bootstrap samples and the bounds of what they give; shares near 0 and 1; what has no interval."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from byheart.evaluation.statistics import FEWEST_CLUSTERS, bounds, draws, interval, is_near_an_end, wilson


@pytest.mark.parametrize("count", [1, 2, 17])
def test_samples_are_as_large_as_the_items_and_always_the_same(count: int) -> None:
    picks = draws(count)
    assert picks.shape == (1000, count)
    assert 0 <= picks.min() <= picks.max() < count
    assert torch.equal(picks, draws(count))


def test_samples_have_items_more_than_once_and_leave_others_out() -> None:
    repeated = [len(set(row)) < 17 for row in draws(17).tolist()]
    assert sum(repeated) > 990


def test_every_item_is_drawn_as_often_as_any_other() -> None:
    counts = torch.bincount(draws(10).flatten(), minlength=10)
    assert counts.sum() == 10_000
    assert (counts - 1000).abs().max() < 150


def test_the_interval_holds_95_percent() -> None:
    low, high = interval(torch.arange(1001, dtype=torch.float32))
    assert (low, high) == (25.0, 975.0)


def test_one_value_has_no_interval() -> None:
    assert interval(torch.full((1000,), 0.1, dtype=torch.double)) == (0.1, 0.1)


def test_the_interval_of_a_mean_narrows_with_the_items() -> None:
    widths = []
    for count in (25, 400):
        values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.double)
        low, high = interval(values[draws(count)].mean(1))
        assert low < values.mean() < high
        widths.append(high - low)
    # Sixteen times the items, a quarter of the width.
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        # Brown, Cai and DasGupta's formula, as R's prop.test(correct=FALSE) gives it.
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (0, 24, 0.0, 0.1380),
        (1, 12, 0.0149, 0.3539),
        (50, 100, 0.4038, 0.5962),
        (517, 517, 0.9926, 1.0),
    ],
)
def test_the_interval_of_wilson(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits / count, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("count", [10, 40, 517])
def test_the_interval_of_wilson_holds_the_share(count: int) -> None:
    for hits in range(count + 1):
        low, high = wilson(hits / count, count)
        assert 0 <= low <= hits / count <= high <= 1
        assert low < high


def test_the_more_hits_the_higher_the_bounds() -> None:
    """Also where the interval of samples takes over from Wilson's, near 0 and near 1."""
    found = []
    for hits in range(41):
        values = (torch.arange(40) < hits).double()
        found.append(bounds(hits / 40, values[draws(40)].mean(1), 40, answers=40))
    assert {is_near_an_end(hits / 40, 40) for hits in (10, 30)} == {False}
    assert {is_near_an_end(hits / 40, 40) for hits in (0, 9, 31, 40)} == {True}
    for (low, high), (next_low, next_high) in pairwise(found):
        # Samples of 40 move in steps of a 40th.
        assert next_low > low - 1 / 40
        assert next_high > high - 1 / 40
    assert all(low < high for low, high in found)


def test_the_interval_of_wilson_holds_the_truth_of_rare_hits() -> None:
    """Where bootstrap samples would often have no hit at all, and so no width."""
    truth, count = 0.02, 60
    drawn = torch.rand(4000, count, generator=torch.Generator().manual_seed(0)) < truth
    shares = drawn.double().mean(1).tolist()
    covered = [low <= truth <= high for low, high in (wilson(share, count) for share in shares)]
    assert sum(covered) / len(covered) > 0.94
    assert sum(share > 0 for share in shares) / len(shares) < 0.75


def test_answers_are_worth_as_many_as_vary_like_their_clusters() -> None:
    """Twenty clusters of five: where answers of one are all alike twenty draws, where they are not a hundred."""
    alike, mixed = torch.zeros(20, 5, dtype=torch.double), torch.zeros(20, 5, dtype=torch.double)
    alike[0], mixed[:5, 0] = 1.0, 1.0
    found = [bounds(0.05, each[draws(20)].mean((1, 2)), 20, answers=100) for each in (alike, mixed)]
    assert found[0] == pytest.approx(wilson(0.05, 20), rel=0.1)
    assert found[1] == pytest.approx(wilson(0.05, 100))
    # Four hits say too little of that, however they fall.
    mixed[4] = 0.0
    assert bounds(0.04, mixed[draws(20)].mean((1, 2)), 20, answers=100) == wilson(0.04, 20)


def test_few_clusters_have_no_interval() -> None:
    values = torch.linspace(0, 1, 1000)
    assert bounds(0.5, values, FEWEST_CLUSTERS - 1) == (0.5, 0.5)
    assert bounds(0.5, values, FEWEST_CLUSTERS) == pytest.approx((0.025, 0.975), abs=1e-3)


def test_samples_that_are_all_alike_give_none() -> None:
    """A width of nothing would claim a certainty that no number of items gives."""
    assert bounds(0.25, torch.full((1000,), 0.25 + 1e-15, dtype=torch.double), 100) == (0.25, 0.25)
