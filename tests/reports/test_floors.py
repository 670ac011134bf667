"""What is said where even the whole text is no better than no memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from byheart.evaluation.results import Result
from byheart.reports.floors import floor_notes


def row(method: str, value: float, low: float, high: float, metric: str = "accuracy", **conditions: Any) -> Result:
    return Result("recall", "pairs", method, metric, value, low, high, 12, 8, 0.1, conditions, clusters=12)


NOTHING, ABOVE, BELOW = row("nothing", 0.1, 0.0, 0.2), row("full", 0.6, 0.5, 0.7), row("full", 0.2, 0.1, 0.4)
DIFFERENCE = row("full", 0.1, 0.05, 0.15, "accuracy_difference")


def test_a_whole_text_above_none_says_nothing() -> None:
    assert list(floor_notes([NOTHING, ABOVE])) == []
    assert list(floor_notes([NOTHING])) == []
    assert list(floor_notes([ABOVE])) == []


def test_a_whole_text_that_is_not_above_none_is_named() -> None:
    (note,) = floor_notes([NOTHING, BELOW, row("window", 0.9, 0.8, 1.0)])
    assert note.startswith("**At the floor (pairs):** even `full` is not shown to be above `nothing` by accuracy")
    (cut,) = floor_notes([replace(NOTHING, method="nothing:max_tokens=8"), replace(BELOW, method="full:max_tokens=8")])
    assert "even `full:max_tokens=8`" in cut


def test_without_the_whole_text_it_is_the_best() -> None:
    worse, better = row("window", 0.05, 0.0, 0.2), row("latent-pool", 0.2, 0.1, 0.3)
    (note,) = floor_notes([NOTHING, worse, better])
    assert "`latent-pool`, the best that was measured, is not shown to be above `nothing`" in note
    assert list(floor_notes([NOTHING, worse, replace(better, low=0.21)])) == []


def test_only_conditions_at_the_floor_are_named() -> None:
    rows = [
        replace(each, conditions={"texts": n})
        for n, full in ((0, ABOVE), (5, BELOW), (9, BELOW))
        for each in (NOTHING, full)
    ]
    (note,) = floor_notes(rows)
    assert "(pairs, texts 5, 9)" in note


@pytest.mark.parametrize(("against", "notes"), [("nothing", 0), ("full", 0), ("window", 1)])
def test_a_difference_on_the_same_items_decides(against: str, notes: int) -> None:
    """One of the two has none: it is what the other differs from. Differences from a third decide nothing."""
    differences = [replace(DIFFERENCE, method=name) for name in ("nothing", "full") if name != against]
    assert len(list(floor_notes([NOTHING, BELOW, *differences]))) == notes


def test_a_difference_that_holds_0_does_not_help() -> None:
    assert len(list(floor_notes([NOTHING, BELOW, replace(DIFFERENCE, low=-0.1)]))) == 1


def test_the_mean_is_told_by_where_there_is_one() -> None:
    """Of single data sets with too few items nothing could be said."""
    single = [replace(each, low=each.value, high=each.value, conditions={"set": "a"}) for each in (NOTHING, BELOW)]
    means = [row(name, 0.357, 0.357, 0.357, "mean_accuracy") for name in ("nothing", "full")]
    (note,) = floor_notes([*single, *means])
    assert "by mean accuracy" in note


def test_a_loss_is_not_told_by() -> None:
    rows = [replace(each, metric="loss", higher_is_better=False) for each in (NOTHING, BELOW)]
    assert list(floor_notes(rows)) == []
