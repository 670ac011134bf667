"""Rows made of outcomes, against a naive twin that draws items and sums up their parts one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from byheart.data.records import Fields
from byheart.evaluation.results import Result
from byheart.evaluation.rows import SoFar, make_differences, make_rows, pool
from byheart.evaluation.run_folder import Outcome
from byheart.evaluation.statistics import draws, interval, wilson
from byheart.evaluation.task import Answer, Item, Part, Question, Task, Totals

Parts = Mapping[str, tuple[float, float]]


class Plain(Task):
    """Makes no items: its outcomes are made by hand."""

    name = "plain"
    higher_is_better: ClassVar = {"loss": False, "control": None}
    unbounded = ("error",)

    def items(self, records: Sequence[Fields], seed: int) -> Any:
        return iter(())

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        return {}


class Compared(Plain):
    """Says how far below the reference's each loss is."""

    references = ("base",)

    def compare(self, spec: str, totals: Mapping[str, Totals], control: Totals) -> Totals:
        less = {"saved": totals["base"]["loss"] - totals[spec]["loss"]} if spec != "base" else {}
        return {**less, **({"by_control": control["loss"]} if control else {})}


def outcome(item: int, parts: Parts, question: int = 0, conditions: Mapping[str, Any] | None = None) -> Outcome:
    costs = {"bytes": 10 + item, "tokens": 4 * item, "write_seconds": 0.5, "answer_seconds": 0.25 * item}
    return Outcome(item, "", question, conditions or {}, "", parts, **costs)


def naive(outcomes: Sequence[Outcome], part: str) -> tuple[float, float, float]:
    """A number and its bounds: whole items are drawn, with all of their questions."""
    items = sorted({each.item for each in outcomes})

    def ratio(chosen: Sequence[int]) -> float:
        parts = [each.parts[part] for n in chosen for each in outcomes if each.item == items[n]]
        return sum(total for total, _ in parts) / sum(weight for _, weight in parts)

    sampled = torch.tensor([ratio(chosen) for chosen in draws(len(items)).tolist()], dtype=torch.double)
    return (ratio(range(len(items))), *interval(sampled))


LOSSES = [outcome(n, {"loss": (1.0 + n * n, 2.0 + n % 3)}) for n in range(12)]


def test_means_so_far_are_those_of_the_rows_over_the_same_answers() -> None:
    classes = [{"f1/a": (2.0, 4.0)}, {"f1/a": (0.0, 0.0), "f1/b": (1.0, 1.0)}, {"f1/c": (0.0, 0.0)}]
    outcomes = [outcome(n, {"loss": (1.0 + n, 2.0), **parts}) for n, parts in enumerate(classes)]
    so_far = SoFar()
    assert so_far.add(outcomes[:1]) == {"loss": 0.5, "f1": 0.5}
    found = so_far.add(outcomes[1:])
    assert found == {row.metric: row.value for row in make_rows(Plain(), "cats", "full", {"full": outcomes})}
    assert found == {"loss": 1.0, "f1": 0.75}


def test_a_number_is_all_totals_over_all_weights() -> None:
    (row,) = make_rows(Plain(), "cats", "full", {"full": LOSSES})
    assert (row.task, row.dataset, row.method, row.metric, row.n) == ("plain", "cats", "full", "loss", 12)
    assert (row.value, row.low, row.high) == pytest.approx(naive(LOSSES, "loss"))
    assert row.low < row.value < row.high
    assert row.higher_is_better is False
    assert row.clusters == 12


def test_costs_are_means_over_the_answers() -> None:
    (row,) = make_rows(Plain(), "cats", "full", {"full": LOSSES})
    assert (row.bytes, row.seconds) == (16, 0.5)
    assert row.costs == {"tokens": 22.0, "answer_seconds": 1.375}


def test_what_reading_cost_is_a_mean_where_every_answer_says_it() -> None:
    found = [replace(each, reading_bytes=100 * n, reread_tokens=n / 2) for n, each in enumerate(LOSSES)]
    found = [*found[:-1], replace(found[-1], first_token_seconds=0.5)]
    (row,) = make_rows(Plain(), "cats", "full", {"full": found})
    assert row.costs == {"tokens": 22.0, "answer_seconds": 1.375, "reading_bytes": 550, "reread_tokens": 2.75}
    assert Result.of(row.flat()) == row


def test_questions_of_one_item_are_drawn_together() -> None:
    many = [outcome(n // 4, {"f1": (float(n % 3), 1.0)}, question=n % 4) for n in range(48)]
    (row,) = make_rows(Plain(), "cats", "full", {"full": many})
    assert (row.n, row.clusters) == (48, 12)
    assert (row.value, row.low, row.high) == pytest.approx(naive(many, "f1"))
    # As items of their own they would tell more than they do.
    alone = [replace(each, item=n) for n, each in enumerate(many)]
    assert naive(alone, "f1")[1:] != pytest.approx(naive(many, "f1")[1:])


def test_each_metric_and_condition_has_a_row_in_the_order_in_which_they_came() -> None:
    found = [
        outcome(n, {"accuracy": (float(n % 2), 1.0), "f1": (0.5, 1.0)}, k, {"turn": turn})
        for n in range(3)
        for k, turn in enumerate((4, 1))
    ]
    rows = make_rows(Plain(), "cats", "full", {"full": found})
    assert [(row.metric, dict(row.conditions)) for row in rows] == [
        (metric, {"turn": turn}) for turn in (4, 1) for metric in ("accuracy", "f1")
    ]
    assert {row.n for row in rows} == {3}


def test_a_metric_that_some_items_lack_is_drawn_from_those_that_have_it() -> None:
    found = [*LOSSES, *(outcome(n, {"score": (float(n), 1.0)}, 1) for n in range(1, 12))]
    loss, score = make_rows(Plain(), "cats", "full", {"full": found})
    assert (loss.n, score.n, score.clusters) == (12, 11, 11)
    scores = [each for each in found if "score" in each.parts]
    assert (score.value, score.low, score.high) == pytest.approx(naive(scores, "score"))


def test_classes_count_once_each_and_those_without_weight_not_at_all() -> None:
    found = [
        outcome(0, {"macro_f1/yes": (2.0, 2.0)}),
        outcome(1, {"macro_f1/yes": (0.0, 1.0), "macro_f1/no": (0.0, 1.0)}),
        outcome(2, {"macro_f1/no": (2.0, 2.0), "macro_f1/never": (0.0, 0.0)}),
    ]
    (row,) = make_rows(Plain(), "cats", "full", {"full": found})
    assert (row.metric, row.n) == ("macro_f1", 3)
    assert row.value == pytest.approx((2 / 3 + 2 / 3) / 2)


def hits(right: int, items: int, questions: int = 1) -> list[Outcome]:
    """Outcomes of items of which the first ``right`` are hits, the same for all of their questions."""
    parts = [{"accuracy": (float(n < right), 1.0), "error": (float(n >= right), 1.0)} for n in range(items)]
    return [outcome(n, parts[n], k) for n in range(items) for k in range(questions)]


@pytest.mark.parametrize("right", [0, 1, 9, 31, 39, 40])
def test_a_share_near_an_end_has_the_interval_of_wilson(right: int) -> None:
    row = make_rows(Plain(), "cats", "full", {"full": hits(right, 40)})[0]
    assert (row.low, row.high) == pytest.approx(wilson(right / 40, 40))
    assert row.low < row.high


def test_a_share_in_the_middle_has_that_of_its_samples() -> None:
    row = make_rows(Plain(), "cats", "full", {"full": hits(20, 40)})[0]
    assert (row.value, row.low, row.high) == pytest.approx(naive(hits(20, 40), "accuracy"))


def test_questions_of_one_item_do_not_narrow_the_interval_of_wilson() -> None:
    row = make_rows(Plain(), "cats", "full", {"full": hits(40, 40, questions=5)})[0]
    assert (row.n, row.clusters) == (200, 40)
    assert (row.low, row.high) == wilson(1.0, 40)


@pytest.mark.parametrize("right", [0, 3, 4, 9])
def test_fewer_than_ten_items_have_no_interval(right: int) -> None:
    row = make_rows(Plain(), "cats", "full", {"full": hits(right, 9, questions=100)})[0]
    assert (row.n, row.clusters, row.has_interval) == (900, 9, False)


def test_an_error_is_no_share_even_where_each_is_0_or_1() -> None:
    assert "error" in Plain.unbounded
    row = make_rows(Plain(), "cats", "full", {"full": hits(40, 40)})[1]
    assert (row.metric, row.value, row.has_interval) == ("error", 0.0, False)


def test_what_is_never_a_whole_hit_has_no_interval_where_all_are_alike() -> None:
    (row,) = make_rows(Plain(), "cats", "full", {"full": [outcome(n, {"f1": (0.3, 1.0)}) for n in range(40)]})
    assert not row.has_interval


def test_one_item_has_no_interval() -> None:
    (row,) = make_rows(Plain(), "cats", "full", {"full": LOSSES[3:4]})
    assert row.low == row.value == row.high == 5.0


# ---- differences ----


def test_a_difference_is_taken_on_the_same_samples() -> None:
    shifted = [
        replace(each, parts={"loss": (each.parts["loss"][0] + 2.0 * each.parts["loss"][1], each.parts["loss"][1])})
        for each in LOSSES
    ]
    (row,) = make_differences(Plain(), "cats", "full", shifted, LOSSES)
    assert (row.metric, row.higher_is_better) == ("loss_difference", False)
    # Each item is worse by the same, so there is no doubt about the difference.
    assert (row.value, row.low, row.high) == pytest.approx((2.0, 2.0, 2.0))


def test_a_difference_has_the_costs_of_the_method_that_is_compared() -> None:
    others = [replace(each, bytes=1000, tokens=1) for each in LOSSES]
    (row,) = make_differences(Plain(), "cats", "full", LOSSES, others)
    assert (row.bytes, row.costs["tokens"], row.value) == (16, 22.0, 0.0)


def test_differences_are_of_the_same_conditions() -> None:
    def both(shift: float) -> list[Outcome]:
        return [outcome(n, {"f1": (shift * turn, 1.0)}, turn, {"turn": turn}) for n in range(3) for turn in (1, 2)]

    rows = make_differences(Plain(), "cats", "full", both(0.5), both(0.25))
    assert [(row.conditions["turn"], row.value) for row in rows] == [(1, 0.25), (2, 0.5)]


# ---- references and controls ----


def test_a_method_is_compared_with_the_references_on_the_same_samples() -> None:
    better = [replace(each, parts={"loss": (each.parts["loss"][0] - 0.5, each.parts["loss"][1])}) for each in LOSSES]
    loss, saved = make_rows(Compared(), "cats", "full", {"full": better, "base": LOSSES})
    assert (loss.metric, saved.metric) == ("loss", "saved")
    assert (saved.value, saved.low, saved.high) == (6.0, 6.0, 6.0)
    assert (saved.n, saved.bytes, saved.costs) == (loss.n, loss.bytes, loss.costs)
    assert [row.metric for row in make_rows(Compared(), "cats", "base", {"base": LOSSES})] == ["loss"]


def test_a_control_is_summed_apart() -> None:
    other = [replace(each, control={"loss": (10.0, each.parts["loss"][1])}) for each in LOSSES]
    rows = {row.metric: row for row in make_rows(Compared(), "cats", "base", {"base": other})}
    assert rows.keys() == {"loss", "by_control"}
    assert rows["by_control"].value == 120.0
    assert rows["loss"].value == pytest.approx(naive(LOSSES, "loss")[0])


def test_each_condition_is_compared_with_its_own() -> None:
    def losses(loss: float) -> list[Outcome]:
        return [outcome(n, {"loss": (loss * k, 1.0)}, k, {"between": k}) for n in range(2) for k in (1, 2)]

    rows = make_rows(Compared(), "cats", "full", {"full": losses(1.0), "base": losses(3.0)})
    assert [(row.conditions["between"], row.value) for row in rows if row.metric == "saved"] == [(1, 4.0), (2, 8.0)]


# ---- several data sets ----


def test_items_of_several_data_sets_stay_apart() -> None:
    pooled = pool([LOSSES, LOSSES[:2]], [1.0, 1.0])
    assert [each.item for each in pooled] == [*range(12), 12, 13]
    assert [each.parts for each in pooled[12:]] == [each.parts for each in LOSSES[:2]]


def test_a_weight_counts_for_totals_and_weights_of_parts_and_controls() -> None:
    other = [replace(each, control={"loss": (2.0, 4.0)}) for each in LOSSES[:1]]
    (found,) = pool([other], [2.5])
    assert (found.parts, found.control) == ({"loss": (2.5, 5.0)}, {"loss": (5.0, 10.0)})
    assert (found.bytes, found.tokens) == (other[0].bytes, other[0].tokens)


def test_a_pooled_number_weighs_its_data_sets() -> None:
    first = [outcome(0, {"loss": (4.0, 2.0)})]
    second = [outcome(0, {"loss": (3.0, 3.0)})]
    (row,) = make_rows(Plain(), "all", "full", {"full": pool([first, second], [1.0, 2.0])})
    assert row.value == pytest.approx((4.0 + 2 * 3.0) / (2.0 + 2 * 3.0))


def test_an_item_is_made_of_plain_values() -> None:
    """Items are compared by what they say when a run is resumed, so tokens are no tensors."""
    item = Item(((1, 2),), (Question(target=(3, 4)),))
    assert item == Item(((1, 2),), (Question(target=(3, 4)),))
    assert item.length == 4
