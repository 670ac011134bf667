"""A grid of settings: which there are, and how the best of them is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import UnknownNameError, UsageError
from byheart.evaluation.grid_search import GRID, search, settings
from byheart.evaluation.tasks.dialogue import Dialogue
from byheart.evaluation.tasks.questions import Questions

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


def search_recent(talk: str, tiny_folder: Path, metric: str, **options: Any) -> list[Any]:
    grid = {"recent": ["1", "4", "64"]}
    where = {"model": str(tiny_folder), "dtype": "float32", **options}
    return search(Dialogue(turns=[2]), talk, method="window", grid=grid, metric=metric, **where)


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_of_a_loss_the_lowest_comes_first(metric: str, talk: str, tiny_folder: Path) -> None:
    rows = search_recent(talk, tiny_folder, metric)
    assert [row.metric for row in rows] == [metric] * 3
    assert [row.value for row in rows] == sorted(row.value for row in rows)
    assert {row.method for row in rows} == {f"window:recent={n}" for n in (1, 4, 64)}


def test_limit_and_skip_choose_the_items(talk: str, tiny_folder: Path) -> None:
    assert {row.n for row in search_recent(talk, tiny_folder, "loss")} == {4}
    assert {row.n for row in search_recent(talk, tiny_folder, "loss", limit=1, skip=2)} == {1}


def test_a_metric_that_the_task_has_not_is_refused_with_the_nearest(talk: str, tiny_folder: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no metric of dialogue 'los'\. Did you mean 'loss'"):
        search_recent(talk, tiny_folder, "los")


def test_an_option_of_evaluating_that_there_is_not_is_refused(talk: str) -> None:
    with pytest.raises(TypeError, match="limits"):
        search(Questions(), talk, method="window", grid={}, limits=3)
