"""The study of keys and values runs from its command line to its table; what it measures is not judged here."""

from __future__ import annotations

import json
from dataclasses import replace
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
    pairs = {f"{one} - {other}" for one, other in ffn_study.PAIRS}
    assert {row.method for row in rows} == {"nothing", *PRESETS, *pairs}
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


@pytest.mark.slow
def test_each_file_is_a_study_of_its_own_whose_cells_are_resumed(tiny_folder: Path, tmp_path: Path) -> None:
    sets = [
        file(tmp_path / f"{name}.jsonl", *({**record, "dataset": name} for record in RECORDS))
        for name in ("rte", "qnli")
    ]
    command = [
        "--each",
        "--train",
        *sets,
        "--test",
        *sets,
        "--model",
        str(tiny_folder),
        "--dtype",
        "float32",
        "--quick",
    ]
    command += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "study.json")]
    ffn_study.main(command)
    about, rows = load(tmp_path / "study.json")
    assert about["each"]
    assert {(row.dataset, row.method) for row in rows if row.method in PRESETS} == {
        (name, preset) for name in ("rte", "qnli") for preset in PRESETS
    }
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*/checkpoints/*")}
    assert len(trained) == 2 * 2 * 4
    ffn_study.main(command)
    assert trained == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*/checkpoints/*")}
    assert load(tmp_path / "study.json")[1] == rows


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--each", "b"], "unrecognized"),
        (["--limit", "100"], "take 200 or more"),
        (["--each"], "a test file for each of"),
    ],
)
def test_what_would_say_too_little_is_refused(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ffn_study.main(["--train", "a", "b", "--test", "c", *more])
    assert message in capsys.readouterr().err


def test_intervals_over_seeds_are_students() -> None:
    row = Result("multitask", "cb", "run", "accuracy", 0.5, 0.0, 1.0, 200, 8, 0.0, clusters=200)
    runs = {
        name: [[replace(row, value=value)] for value in values]
        for name, values in {"qv+up": (0.5, 0.6, 0.7), "qv+down": (0.4, 0.5, 0.6), "qv": (0.5,), "qv+gate": ()}.items()
    }
    (found,) = ffn_study.average_seeds("qv+up", runs["qv+up"])
    # 4.303 standard errors of 0.1 over three.
    assert (found.low, found.high) == pytest.approx((0.6 - 0.24843, 0.6 + 0.24843), abs=1e-4)
    rows = {row.method: row for row in ffn_study.differences(runs)}
    assert rows["qv+up - qv+down"].value == pytest.approx(0.1)
    assert rows["qv+up - qv+down"].low == pytest.approx(0.1)
    assert rows["qv+up - qv"].conditions["seeds"] == 1
    assert not any("gate" in name for name in rows)


def test_the_interval_is_over_items_however_alike_three_seeds_are() -> None:
    row = Result("multitask", "cb", "run", "accuracy", 0.75, 0.0, 1.0, 56, 8, 0.0, clusters=56)
    (found,) = ffn_study.average_seeds("qv", [[row]] * 3)
    assert (found.value, found.n, found.conditions) == (0.75, 56, {"seeds": 3})
    # Wilson's interval of 42 of 56, from a table.
    assert (found.low, found.high) == pytest.approx((0.6230, 0.8450), abs=5e-4)
    (spread,) = ffn_study.average_seeds("qv", [[replace(row, value=value)] for value in (0.5, 0.6, 0.7)])
    assert spread.value == pytest.approx(0.6)
    assert spread.low < 0.5 < 0.7 < spread.high


def test_few_items_have_no_interval() -> None:
    row = Result("multitask", "cb", "run", "accuracy", 0.5, 0.0, 1.0, 9, 8, 0.0, clusters=9)
    (found,) = ffn_study.average_seeds("qv", [[row]] * 3)
    assert not found.has_interval
