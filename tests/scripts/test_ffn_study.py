"""The study of keys and values runs from its command line to its table; what it measures is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from byheart.evaluation.results import Result, load
from scripts import ffn_study
from tests.methods.test_adapter import RECORDS, file

PRESETS = ["qv", "qv+up", "qv+gate", "qv+down"]


def test_every_preset_is_trained_with_every_seed_and_averaged(tiny_folder: Path, tmp_path: Path) -> None:
    sets = [
        file(tmp_path / f"{name}.jsonl", *({**record, "dataset": name} for record in RECORDS))
        for name in ("rte", "qnli")
    ]
    command = ["--train", *sets, "--test", *sets, "--model", str(tiny_folder), "--dtype", "float32", "--quick"]
    command += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "study.json")]
    ffn_study.main(command)
    about, rows = load(tmp_path / "study.json")
    assert {row.method for row in rows} == {"nothing", *PRESETS}
    assert {(row.dataset, row.metric) for row in rows if row.method == "qv+up"} == {
        ("rte", "accuracy"),
        ("qnli", "accuracy"),
        ("all", "mean_accuracy"),
    }
    assert all(row.low <= row.value <= row.high for row in rows)
    sizes = about["parameters"]
    assert sizes["qv+up"] == sizes["qv+gate"] == sizes["qv+down"]
    assert sizes["qv"] == pytest.approx(sizes["qv+up"], rel=0.06)
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/checkpoints/*")}
    assert len(trained) == 8
    ffn_study.main(command)
    assert load(tmp_path / "study.json")[1] == rows
    recipe = json.loads((tmp_path / "runs" / "qv-1" / "recipe.json").read_text())
    assert (recipe["seed"], recipe["options"]["seed"], recipe["options"]["rank"]) == (1, 1, about["ranks"]["qv"])


def test_the_interval_is_over_seeds() -> None:
    rows = [Result("multitask", "rte", "run", "accuracy", value, 0.0, 1.0, 10, 8, 0.0) for value in (0.5, 0.6, 0.7)]
    (found,) = ffn_study.average_seeds("qv", [[row] for row in rows])
    assert found.value == pytest.approx(0.6)
    assert found.high - found.value == pytest.approx(4.303 * 0.1 / 3**0.5)
    (alone,) = ffn_study.average_seeds("qv", [[rows[0]]])
    assert (alone.low, alone.high) == (0.0, 1.0)
