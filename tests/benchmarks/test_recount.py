"""Stored rows of earlier versions become what would be stored today, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recount
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.results import load, save
from byheart.evaluation.statistics import wilson
from byheart.evaluation.task import Task
from byheart.evaluation.tasks.needle import Needle
from byheart.evaluation.tasks.retention import Retention

POOL = "latent-pool:slots=4;blocks=2;longest=64;shortest=2;max_tokens=2"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "eval"
    folder.mkdir()
    asked = [
        {"context": f"Cat {n} is Muck{n}. It is old.", "question": f"Who, {m}?", "answers": [f"Muck{n}"]}
        for n in range(14)
        for m in range(2)
    ]
    (folder / "cats.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in asked))
    return folder


def made_old(file: Path) -> list[dict[str, Any]]:
    """Take away what rows of earlier versions lack, and give all shares intervals of no width, as they had at 0."""
    stored = json.loads(file.read_text())
    before = [dict(row) for row in stored["rows"]]
    for row in stored["rows"]:
        del row["clusters"]
        row["low"] = row["high"] = row["value"]
    stored["rows"] = [row for row in stored["rows"] if row["metric"] not in ("law", "mean_accuracy")]
    file.write_text(json.dumps(stored))
    return before


@pytest.mark.parametrize(
    ("task", "methods", "limit"),
    [
        (Retention(distractors=1), ["nothing", POOL], 12),
        (Needle(lengths=(5,), depths=(0, 1), needles=6), ["full:max_tokens=2"], 0),
    ],
    ids=["retention", "needle"],
)
def test_rows_without_clusters_become_those_that_are_stored_today(
    task: Task, methods: list[str], limit: int, data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out, cats = tmp_path / "results" / "tasks" / "one", str(data / "cats.jsonl")
    evaluate(task, cats, methods, model=str(tiny_folder), dtype="float32", limit=limit, out=out)
    before = made_old(out / "rows.json")
    recount.main(["--data", str(data), "--results", str(tmp_path / "results")])
    after = json.loads((out / "rows.json").read_text())["rows"]
    # The middle of a score that is no share, such as F1, cannot be made again.
    told = [[row for row in rows if row["metric"] != "f1"] for rows in (before, after)]
    assert [row["metric"] for row in after] == [row["metric"] for row in before]
    assert told[0] == told[1]
    assert any(row["low"] < row["high"] for row in told[1])
    text = (out / "rows.json").read_text()
    recount.main(["--data", str(data), "--results", str(tmp_path / "results")])
    assert (out / "rows.json").read_text() == text


def test_other_data_are_refused(data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "tasks" / "one"
    evaluate(Retention(distractors=1), str(data / "cats.jsonl"), ["nothing"], model=str(tiny_folder), limit=1, out=out)
    made_old(out / "rows.json")
    (data / "cats.jsonl").write_text((data / "cats.jsonl").read_text().replace("old", "young"))
    with pytest.raises(SystemExit, match=r"cats\.jsonl holds other records than those that were measured"):
        recount.main(["--data", str(data), "--results", str(tmp_path / "results")])


def test_a_study_is_over_items_not_over_seeds(tmp_path: Path) -> None:
    about: dict[str, Any] = {"dataset": "cb", "n": 56, "bytes": 8, "seconds": 0.0, "set": "cb"}
    row = {"task": "multitask", "metric": "accuracy", "value": 0.75, "low": 0.75, "high": 0.75, **about}
    file = tmp_path / "ffn_study.json"
    file.write_text(json.dumps({"about": {"limit": 0}, "rows": [{**row, "method": "qv", "seeds": 3}]}))
    recount.recount_study(file)
    (found,) = load(file)[1]
    assert (found.clusters, found.low, found.high) == (56, *wilson(0.75, 56))


@pytest.mark.parametrize("end", ["_difference", "_over_nothing", "_over_other_text"])
def test_a_difference_keeps_its_paired_interval(tmp_path: Path, end: str) -> None:
    about: dict[str, Any] = {"dataset": "cb", "n": 24, "bytes": 8, "seconds": 0.0}
    row = {"task": "faithful", "metric": f"accuracy{end}", "value": 0.125, "low": 0.0, "high": 0.25, **about}
    file = tmp_path / "rate_study.json"
    file.write_text(json.dumps({"about": {"limit": 0}, "rows": [{**row, "method": "last-ffn"}]}))
    recount.recount_study(file)
    (found,) = load(file)[1]
    assert (found.clusters, found.low, found.high) == (24, 0.0, 0.25)


def test_windows_too_few_lose_their_interval(tmp_path: Path) -> None:
    (few, many) = (
        recount.Result("gap", "novels", "window", "loss", 4.0, 3.5, 4.5, n, 8, 0.0, higher_is_better=False)
        for n in (8, 48)
    )
    save(tmp_path / "gap.json", [few, many])
    recount.recount_windows(tmp_path / "gap.json")
    first, second = load(tmp_path / "gap.json")[1]
    assert (first.has_interval, second.low, second.high, second.clusters) == (False, 3.5, 4.5, 48)
