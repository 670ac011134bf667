"""Rows of results: what they say, their means, and their files, also those of earlier versions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import InputError
from byheart.evaluation.results import COSTS, Result, average, load, means, pool_shares, save
from byheart.evaluation.statistics import wilson
from tests.samples import ROOT

ROW = Result("recall", "cats", "full", "accuracy", 0.5, 0.25, 0.75, 8, 4096, 0.5, {"pairs": 5}, {"tokens": 64.0}, True)


def row(value: float = 0.5, half: float = 0.1, metric: str = "accuracy", **conditions: Any) -> Result:
    return replace(ROW, metric=metric, value=value, low=value - half, high=value + half, conditions=conditions)


# ---- conditions and costs ----


def test_conditions_and_costs_are_flat_in_a_file_and_apart_in_a_row() -> None:
    flat = ROW.flat()
    assert (flat["pairs"], flat["tokens"]) == (5, 64.0)
    assert not {"conditions", "costs"} & flat.keys()
    assert Result.of(flat) == ROW
    assert Result.of(json.loads(json.dumps(flat))) == ROW


@pytest.mark.parametrize("name", COSTS)
def test_a_cost_is_known_by_its_name(name: str) -> None:
    found = Result.of({**ROW.flat(), name: 2.5})
    assert found.costs[name] == 2.5
    assert dict(found.conditions) == {"pairs": 5}


def test_a_condition_of_any_name_is_kept() -> None:
    found = Result.of({**ROW.flat(), "temperature": 0.5, "set": "rte"})
    assert dict(found.conditions) == {"pairs": 5, "temperature": 0.5, "set": "rte"}


@pytest.mark.parametrize(
    "name", ["task", "dataset", "method", "metric", "value", "low", "high", "n", "bytes", "seconds"]
)
def test_what_a_row_lacks_is_named(name: str) -> None:
    flat = {key: value for key, value in ROW.flat().items() if key != name}
    with pytest.raises(InputError, match=f"no row of a result: it lacks {name}"):
        Result.of(flat)


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        *[("accuracy", True), ("mean_accuracy", True), ("loss_of_hair", True), ("gap_closed", True)],
        *[("loss", False), ("mean_loss", False), ("failures_difference", False), ("rmse", False)],
        *[("law", None), ("gap_closed_by_other_text", None)],
    ],
)
def test_a_row_of_an_earlier_version_knows_which_way_is_better(metric: str, better: bool | None) -> None:
    flat = {key: value for key, value in ROW.flat().items() if key != "higher_is_better"}
    assert Result.of({**flat, "metric": metric}).higher_is_better is better


def test_a_row_says_itself_which_way_is_better() -> None:
    """A metric that is not byheart's own, such as one of lm-eval, says so in the file."""
    assert Result.of({**ROW.flat(), "metric": "byte_perplexity", "higher_is_better": False}).higher_is_better is False
    assert Result.of({**ROW.flat(), "metric": "loss", "higher_is_better": True}).higher_is_better is True


# ---- other metrics of the same numbers ----


def test_a_number_goes_through_a_function_with_its_bounds() -> None:
    found = replace(row(2.0, metric="loss"), higher_is_better=False).mapped("perplexity", math.exp)
    assert (found.metric, found.higher_is_better) == ("perplexity", False)
    assert (found.value, found.low, found.high) == pytest.approx([math.exp(x) for x in (2.0, 1.9, 2.1)])
    assert (found.n, found.bytes, found.costs) == (ROW.n, ROW.bytes, ROW.costs)


# ---- means ----


def test_a_mean_counts_each_row_once_whatever_its_items() -> None:
    rows = [replace(row(0.2, set="x", k=1), n=100), replace(row(0.6, set="y", k=1), n=2)]
    (mean,) = means(rows, over="set", metric="accuracy")
    assert (mean.metric, mean.value, mean.n) == ("mean_accuracy", pytest.approx(0.4), 102)
    assert dict(mean.conditions) == {"k": 1}
    # Two independent intervals of half a width 0.1.
    assert mean.high - mean.value == pytest.approx(0.1 / math.sqrt(2))
    assert mean.value - mean.low == pytest.approx(0.1 / math.sqrt(2))


def test_the_bounds_of_a_mean_lean_as_those_of_its_rows_do() -> None:
    rows = [replace(row(1.0, set=name), low=0.7, high=1.0, clusters=12) for name in "xy"]
    (mean,) = means(rows, over="set", metric="accuracy")
    assert (mean.high, mean.clusters) == (1.0, 24)
    assert mean.low == pytest.approx(1 - 0.3 / math.sqrt(2))


def test_a_mean_with_a_row_that_has_no_interval_has_none() -> None:
    rows = [row(0.2, set="x"), row(0.6, half=0.0, set="y")]
    (mean,) = means(rows, over="set", metric="accuracy")
    assert (mean.value, mean.has_interval) == (pytest.approx(0.4), False)
    assert not average(rows).has_interval


def test_shares_of_other_items_are_pooled_and_may_have_an_interval_together() -> None:
    """Six needles at each of three depths have none; eighteen have."""
    found = [
        replace(row(share, half=0.0, words=100, depth=depth), n=6, clusters=6)
        for depth, share in enumerate((1.0, 1.0, 5 / 6))
    ]
    (pooled,) = pool_shares(found, over="depth", metric="accuracy")
    assert (pooled.metric, pooled.n, pooled.clusters, pooled.conditions) == ("mean_accuracy", 18, 18, {"words": 100})
    assert pooled.value == pytest.approx(17 / 18)
    assert (pooled.low, pooled.high) == pytest.approx(wilson(17 / 18, 18))
    (few,) = pool_shares([replace(each, clusters=3) for each in found], over="depth", metric="accuracy")
    assert not few.has_interval
    (uneven,) = pool_shares([replace(found[0], n=18), found[2]], over="depth", metric="accuracy")
    assert uneven.value == pytest.approx(23 / 24)


def test_a_row_of_an_earlier_version_does_not_say_its_clusters() -> None:
    flat = {key: value for key, value in replace(ROW, clusters=5).flat().items() if key != "clusters"}
    assert Result.of(flat).clusters == 0
    assert Result.of({**flat, "clusters": 5}).clusters == 5


def test_a_mean_has_the_mean_costs() -> None:
    rows = [
        replace(row(set="x"), bytes=10, seconds=1.0, costs={"answer_seconds": 1.0, "tokens": 10.0}),
        replace(row(set="y"), bytes=21, seconds=2.0, costs={"answer_seconds": 4.0, "tokens": 30.0}),
    ]
    (mean,) = means(rows, over="set", metric="accuracy")
    assert (mean.bytes, mean.seconds, mean.costs) == (16, 1.5, {"answer_seconds": 2.5, "tokens": 20.0})


def test_there_is_a_mean_for_each_set_of_other_conditions() -> None:
    rows = [
        row(value, set=name, k=k) for k, name, value in ((1, "x", 0.1), (2, "x", 0.3), (1, "y", 0.3), (2, "y", 0.5))
    ]
    assert [(mean.conditions["k"], mean.value) for mean in means(rows, over="set", metric="accuracy")] == [
        (1, pytest.approx(0.2)),
        (2, pytest.approx(0.4)),
    ]


def test_a_mean_of_one_or_of_another_metric_is_none() -> None:
    assert means([row(set="x")], over="set", metric="accuracy") == []
    assert means([row(set="x"), row(set="y")], over="set", metric="f1") == []
    assert means([row(k=1), row(k=2)], over="set", metric="accuracy") == []


def test_the_mean_of_a_loss_is_better_if_lower() -> None:
    rows = [replace(row(metric="loss", set=name), higher_is_better=False) for name in "xy"]
    assert means(rows, over="set", metric="loss")[0].higher_is_better is False


def test_an_average_has_the_mean_of_every_number_and_its_bounds() -> None:
    rows = [
        replace(row(0.2), low=0.1, high=0.4, bytes=10, costs={"tokens": 4.0, "answer_seconds": 1.0}),
        replace(row(0.4), low=0.3, high=0.6, bytes=21, costs={"tokens": 6.0}),
    ]
    mean = average(rows, n=7)
    assert mean.interval == pytest.approx((0.3, 0.2, 0.5))
    assert (mean.bytes, mean.n, mean.costs) == (16, 7, {"tokens": 5.0})
    assert average(rows[:1]) == rows[0]


# ---- files ----


def test_a_file_says_what_its_rows_came_from(tmp_path: Path) -> None:
    save(tmp_path / "new" / "rows.json", [ROW, row(k=1)], seed=3, note={"who": "ä"})
    about, rows = load(tmp_path / "new" / "rows.json")
    assert rows == [ROW, row(k=1)]
    assert (about["seed"], about["note"]) == (3, {"who": "ä"})
    assert {"versions", "threads", "machine"} <= about.keys()
    assert set(about["versions"]) == {"byheart", "torch", "transformers"}


def test_a_file_is_text_that_ends_in_a_line_break(tmp_path: Path) -> None:
    save(tmp_path / "rows.json", [replace(ROW, dataset="Käse")])
    text = (tmp_path / "rows.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "Käse" in text


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"about": {}}', '{"about": {}, "rows": 3}', '{"about": 1, "rows": []}']
)
def test_a_file_that_is_none_is_refused_by_its_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(InputError, match=r"rows\.json' cannot be read as results"):
        load(tmp_path / "rows.json")


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json' cannot be read as results"):
        load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "file",
    sorted(
        [
            *(ROOT / "benchmarks" / "results" / "tasks").glob("*/rows.json"),
            *(ROOT / "benchmarks" / "results").glob("gap*.json"),
            *(ROOT / "benchmarks" / "results").glob("*_study.json"),
        ]
    ),
    ids=lambda file: f"{file.parent.name}/{file.name}",
)
def test_the_published_results_are_read(file: Path) -> None:
    _, rows = load(file)
    stored = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == len(stored) > 0
    for found, flat in zip(rows, stored, strict=True):
        assert found.flat().items() >= flat.items()
        assert not set(found.conditions) & set(COSTS)
        assert found.low <= found.value <= found.high or found.metric == "average"
