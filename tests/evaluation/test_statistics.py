"""Bootstrap samples: which items they have, and the bounds of what they give."""

from __future__ import annotations

import pytest
import torch

from byheart.evaluation.statistics import draws, interval


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
