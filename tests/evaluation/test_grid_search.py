"""A grid of settings: which there are, and how the best of them is found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import ModelError, UnknownNameError, UsageError
from byheart.evaluation import grid_search
from byheart.evaluation.grid_search import GRID, search, settings
from byheart.evaluation.results import Result
from byheart.evaluation.tasks.dialogue import Dialogue
from byheart.evaluation.tasks.questions import Questions
from byheart.evaluation.tasks.summary import Summary

TALK = {"meta": {"turns": [f"turn {n}" for n in range(6)]}}


@pytest.fixture
def talk(tmp_path: Path) -> str:
    file = tmp_path / "talk.jsonl"
    file.write_text("".join(json.dumps(TALK) + "\n" for _ in range(4)))
    return str(file)


def test_a_grid_is_every_combination_in_order() -> None:
    grid = {"steps": ["1", "2"], "kl": ["0.1", "1"]}
    assert settings("last-ffn", grid) == [
        "last-ffn:steps=1;kl=0.1",
        "last-ffn:steps=1;kl=1",
        "last-ffn:steps=2;kl=0.1",
        "last-ffn:steps=2;kl=1",
    ]
    assert settings("last-ffn", {}) == ["last-ffn:"]
    assert len(settings("last-ffn", GRID)) == 60


def test_options_of_decoding_can_be_tried_too() -> None:
    assert settings("full", {"context_aware": ["0.5"]}) == ["full:context_aware=0.5"]


@pytest.mark.parametrize("values", [[], ["1", ""]])
def test_an_option_without_a_value_is_refused(values: list[str]) -> None:
    with pytest.raises(UsageError, match="steps has no values to try; give some, such as steps=1,2"):
        settings("last-ffn", {"steps": values})


def test_an_option_that_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no option of window 'recents'\. Did you mean 'recent'"):
        settings("window", {"recents": ["1"]})
    with pytest.raises(UnknownNameError, match="windov"):
        settings("windov", {"recent": ["1"]})


def search_recent(talk: str, tiny_folder: Path, metric: str | list[str], **options: Any) -> list[Any]:
    grid = {"recent": ["1", "4", "64"]}
    where = {"model": str(tiny_folder), "dtype": "float32", **options}
    return search(Dialogue(turns=[2]), talk, method="window", grid=grid, metric=metric, **where)


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_of_a_loss_the_lowest_comes_first(metric: str, talk: str, tiny_folder: Path) -> None:
    rows = search_recent(talk, tiny_folder, metric)
    assert [row.metric for row in rows] == [metric] * 3
    assert [row.value for row in rows] == sorted(row.value for row in rows)
    assert {row.method for row in rows} == {f"window:recent={n}" for n in (1, 4, 64)}


def test_by_several_metrics_the_sum_of_ranks_decides(
    talk: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By metric, the numbers of recent=1, 4 and 64: of errors fewer are better.
    values = {"rouge": (0.3, 0.2, 0.1), "truth": (0.1, 0.8, 0.9), "errors": (5.0, 1.0, 1.0)}
    better = {"rouge": True, "truth": True, "errors": False}

    def evaluate(task: Any, data: str, methods: list[str], **options: Any) -> list[Result]:
        return [
            Result("t", "d", method, metric, row[n], 0, 0, 1, 0, 0.0, higher_is_better=better[metric])
            for n, method in enumerate(methods)
            for metric, row in values.items()
        ]

    monkeypatch.setattr(grid_search, "evaluate", evaluate)

    def order(*metrics: str) -> list[tuple[str, str]]:
        rows = search_recent(talk, tiny_folder, list(metrics))
        return [(row.method.partition("=")[2], row.metric) for row in rows]

    # Settings that are better: 0, 1, 2 by rouge; 2, 1, 0 by truth; 2, 0, 0 by errors.
    assert order("rouge", "truth") == [(n, metric) for n in ("1", "4", "64") for metric in ("rouge", "truth")]
    assert [n for n, _ in order("errors", "truth", "rouge")] == [n for n in ("4", "64", "1") for _ in range(3)]
    assert [metric for _, metric in order("errors", "truth", "rouge")][:3] == ["errors", "truth", "rouge"]
    with pytest.raises(UnknownNameError, match="no metric of dialogue 'rogue'"):
        order("rouge", "rogue")
    with pytest.raises(UsageError, match="There is no metric to choose settings by"):
        order()


@pytest.mark.parametrize(("metric", "option"), [("bert_precision", "bertscore"), ("factkb", "factkb")])
def test_a_metric_that_only_an_option_measures_is_refused_before_anything_is_tried(metric: str, option: str) -> None:
    with pytest.raises(UsageError, match=f"summary measures {metric} only with {option}=true; give -o {option}=true"):
        search(Summary(), "nowhere.jsonl", metric=["rouge_l", metric])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bertscore": True}, UsageError, "BERTScore needs 'bert_score', which is not installed: pip install"),
        ({"factkb": "/nowhere/FactKB"}, ModelError, "/nowhere/FactKB"),
    ],
)
def test_a_search_by_a_score_that_cannot_be_opened_says_so_before_anything_is_tried(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("rouge_score")
    monkeypatch.setitem(sys.modules, "bert_score", None)
    file = tmp_path / "xsum_sample_train_1000.jsonl"
    file.write_text(json.dumps({"article": "A barn burned.", "summary": "It burned."}))
    metrics = ["rouge_l", "bert_precision" if "bertscore" in options else "factkb"]
    with pytest.raises(error, match=message):
        search(Summary(**options), str(file), metric=metrics, model=str(tiny_folder), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_limit_and_skip_choose_the_items(talk: str, tiny_folder: Path) -> None:
    assert {row.n for row in search_recent(talk, tiny_folder, "loss")} == {4}
    assert {row.n for row in search_recent(talk, tiny_folder, "loss", limit=1, skip=2)} == {1}


def test_a_metric_that_the_task_has_not_is_refused_with_the_nearest(talk: str, tiny_folder: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no metric of dialogue 'los'\. Did you mean 'loss'"):
        search_recent(talk, tiny_folder, "los")


def test_an_option_of_evaluating_that_there_is_not_is_refused(talk: str) -> None:
    with pytest.raises(TypeError, match="limits"):
        search(Questions(), talk, method="window", grid={}, limits=3)
