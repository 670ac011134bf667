"""Files of rows: how they are found, merged over seeds, told apart, and which of their numbers are best."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import InputError
from byheart.evaluation.results import Result, save
from byheart.reports.runs import Number, Source, mark_best, merge, pareto, read, show

ROW = Result("qa", "squad", "full", "f1", 0.5, 0.4, 0.6, 40, 4096, 0.25)


def number(method: str, value: float, kept: int, better: bool | None = True, **conditions: Any) -> Number:
    row = replace(ROW, method=method, value=value, low=value, high=value, bytes=kept, higher_is_better=better)
    return Number(replace(row, conditions=conditions))


def source(rows: list[Result], path: str = "runs/a/rows.json", **about: Any) -> Source:
    return Source(Path(path), about, rows)


# ---- reading ----


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("a/rows.json", "a/deep/gap.json", "b/rows.json", "b/other.json"):
        save(tmp_path / name, [ROW])
    found = read([tmp_path / "a", tmp_path / "b" / "other.json"])
    assert sorted(each.path.name for each in found) == ["gap.json", "other.json", "rows.json"]
    assert {each.run for each in found} == {"a", "deep", "other"}


def test_a_path_is_as_seen_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a" / "rows.json", [ROW])
    monkeypatch.chdir(tmp_path)
    assert read(["a"])[0].path == Path("a/rows.json")
    monkeypatch.chdir(tmp_path / "a")
    assert read([tmp_path / "a"])[0].path == Path("rows.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [("value", "good"), ("n", None), ("bytes", "8"), ("method", 3), ("dataset", None), ("tokens", "few")],
)
def test_words_for_numbers_and_numbers_for_words_are_refused(field: str, value: Any, tmp_path: Path) -> None:
    stored = {"about": {}, "rows": [{**ROW.flat(), field: value}]}
    (tmp_path / "rows.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"rows\.json' cannot be read as results"):
        read([tmp_path])


# ---- settings ----


def test_what_decides_a_number_is_neither_its_seed_nor_its_machine() -> None:
    about = {"model": "tiny", "seed": 1, "machine": "x86_64", "threads": 2, "versions": {"torch": "2"}, "limit": 4}
    assert source([ROW], **about).settings(ROW) == {"model": "tiny", "limit": "4"}


def test_the_options_of_a_run_belong_to_its_own_method() -> None:
    key = {"task": "qa", "dataset": "squad"}
    runs = [
        {**key, "method": "full", "limit": 4, "options": {"every": 5}},
        {**key, "method": "window", "limit": 8, "options": {"every": 5}},
    ]
    found = source([ROW], runs=runs)
    assert found.settings(ROW) == {"limit": "4", "every": "5"}
    assert found.settings(replace(ROW, method="window")) == {"limit": "8", "every": "5"}
    assert found.settings(replace(ROW, method="nothing")) == {}
    assert found.record == {"limit": "4; 8", "every": "5"}


def test_an_option_that_is_newer_than_a_run_had_its_default_then() -> None:
    row = replace(ROW, task="questions")
    key = {"task": "questions", "dataset": "squad", "method": "full", "limit": 4}
    options: list[dict[str, str]] = [{}, {"instruction": ""}, {"instruction": "Be short."}]
    sources = [
        source([row], f"runs/{seed}/rows.json", seed=seed, runs=[{**key, "options": each}])
        for seed, each in enumerate(options)
    ]
    assert [(each.row.method, each.runs) for each in merge(sources[:2])] == [("full", 2)]
    assert [each.row.method for each in merge(sources)] == ["full (instruction none)", "full (instruction Be short.)"]


@pytest.mark.parametrize(
    ("value", "text"), [("a b", "a b"), (3, "3"), (None, "null"), ([1, "a"], "1, a"), ({"a": "ä"}, '{"a": "ä"}')]
)
def test_a_setting_is_shown_as_it_is_typed(value: Any, text: str) -> None:
    assert show(value) == text


# ---- merging ----


def test_rows_of_other_seeds_are_one_number_with_mean_costs() -> None:
    rows = [
        replace(ROW, value=value, low=value - 0.1, high=value + 0.2, bytes=kept, n=n, costs={"tokens": tokens})
        for value, kept, n, tokens in ((0.25, 100, 40, 10.0), (0.75, 201, 41, 20.0))
    ]
    (found,) = merge([source([row], f"runs/{seed}/rows.json", seed=seed) for seed, row in enumerate(rows)])
    assert (found.runs, found.row.value, found.row.n, found.row.bytes) == (2, 0.5, 40, 150)
    assert (found.row.low, found.row.high) == pytest.approx((0.4, 0.7))
    assert found.row.costs == {"tokens": 15.0}


def test_a_cost_that_a_run_lacks_has_no_mean() -> None:
    rows = [replace(ROW, costs={"tokens": 1.0, "answer_seconds": 2.0}), replace(ROW, costs={"tokens": 3.0})]
    (found,) = merge([source([row], seed=seed) for seed, row in enumerate(rows)])
    assert found.row.costs == {"tokens": 2.0}


def test_rows_of_other_conditions_are_other_numbers() -> None:
    rows = [replace(ROW, conditions={"turn": turn}) for turn in (1, 2)]
    assert [found.place for found in merge([source(rows)])] == [(("turn", 1),), (("turn", 2),)]


def test_conditions_in_another_order_are_the_same() -> None:
    rows = [replace(ROW, conditions=conditions) for conditions in ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
    (found,) = merge([source([row], seed=seed) for seed, row in enumerate(rows)])
    assert found.runs == 2


def test_a_condition_of_any_kind_can_be_compared() -> None:
    found = Number(replace(ROW, conditions={"layers": [1, 2], "set": "rte"}))
    assert found.place == (("layers", "1, 2"), ("set", "rte"))
    assert found.key[-1] == '{"layers": "1, 2", "set": "rte"}'


def test_a_setting_that_only_one_run_has_tells_it_apart() -> None:
    found = merge([source([ROW], limit=4), source([ROW], "runs/b/rows.json", limit=4, note="x")])
    assert [each.row.method for each in found] == ["full (note not said)", "full (note x)"]


def test_two_runs_of_one_seed_are_told_apart_by_path_where_their_folders_have_one_name() -> None:
    found = merge([source([ROW], path) for path in ("one/run/rows.json", "two/run/rows.json")])
    assert [each.row.method for each in found] == ["full (one/run/rows.json)", "full (two/run/rows.json)"]


def test_rows_that_no_other_run_has_keep_their_name() -> None:
    other = replace(ROW, dataset="nq")
    found = merge([source([ROW], limit=4), source([other], "runs/b/rows.json", limit=8)])
    assert [each.row.method for each in found] == ["full", "full"]


# ---- the best ----


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([], []),
        ([(1, 1.0)], [0]),
        ([(1, 1.0), (2, 1.0)], [0]),
        ([(2, 1.0), (1, 1.0)], [1]),
        ([(1, 1.0), (1, 1.0)], [0, 1]),
        ([(1, 1.0), (2, 2.0), (3, 1.5), (4, 3.0)], [0, 1, 3]),
    ],
)
def test_a_point_on_the_frontier_is_beaten_by_none(points: list[tuple[float, float]], best: list[int]) -> None:
    assert pareto(points) == best


@pytest.mark.parametrize(("better", "best"), [(True, ["a", "b"]), (False, ["a", "c"]), (None, [])])
def test_the_row_says_which_way_is_better(better: bool | None, best: list[str]) -> None:
    numbers = [number("a", 2, 1, better), number("b", 3, 2, better), number("c", 1, 3, better)]
    assert [each.row.method for each in mark_best(numbers) if each.best] == best


def test_a_control_is_never_best_and_beats_nobody() -> None:
    numbers = [number("full:control=nothing", 9, 0, None), number("full", 2, 5), number("window", 1, 3)]
    assert [each.row.method for each in mark_best(numbers) if each.best] == ["full", "window"]


def test_what_is_not_finite_is_never_best() -> None:
    numbers = [number("a", math.nan, 0), number("b", math.inf, 0), number("c", 0.1, 9)]
    assert [each.row.method for each in mark_best(numbers) if each.best] == ["c"]


def test_methods_compete_under_the_same_conditions_alone() -> None:
    numbers = [number("a", 1, 1, turn=1), number("b", 0, 2, turn=1), number("b", 0, 2, turn=2)]
    assert [each.best for each in mark_best(numbers)] == [True, False, True]


def test_metrics_and_data_sets_have_frontiers_of_their_own() -> None:
    first = number("a", 0.9, 1)
    others = [
        replace(first, row=replace(first.row, value=0.1, bytes=5, **{name: "x"})) for name in ("metric", "dataset")
    ]
    assert [each.best for each in mark_best([first, *others])] == [True, True, True]


def test_a_number_is_printed_with_its_runs() -> None:
    flat = Number(replace(ROW, conditions={"turn": 1}), runs=3, best=True).flat()
    assert (flat["turn"], flat["runs"], flat["frontier"], flat["method"]) == (1, 3, True, "full")
