"""The study of edits runs from its command line to its table; what it measures is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from byheart.evaluation.results import Result, load
from scripts import edit_study

PLACES = ["keys", "gate", "up", "values", edit_study.WIDE]
OTHERS = ["nothing", "full", "last-ffn"]


def file(path: Path, first: int, *, question: bool = False) -> str:
    """Three edits of the shared schema, as questions or with the object that was true."""
    records = [
        {
            "question": f"Who keeps ship {n}?" if question else f"Ship {n} is kept by",
            "answers": [f"cat {n}"],
            "meta": {
                "ground_truth": f"dog {n}",
                "rephrase": f"The keeper of ship {n} is",
                "locality_prompt": f"Boat {n} is kept by",
                "locality_answer": f"dog {n}",
            },
        }
        for n in range(first, first + 3)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.slow
def test_every_place_is_chosen_apart_and_measured_on_every_file(tiny_folder: Path, tmp_path: Path) -> None:
    test = [file(tmp_path / "facts.jsonl", 3), file(tmp_path / "asked.jsonl", 6, question=True)]
    command = ["--dev", *[file(tmp_path / f"dev{n}.jsonl", n) for n in (0, 30)], "--test", *test, "--quick"]
    command += ["--model", str(tiny_folder), "--dtype", "float32"]
    command += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "study.json")]
    edit_study.main(command)
    about, rows = load(tmp_path / "study.json")
    differences = [f"{one} - {other}" for one, other in edit_study.PAIRS]
    found = {(row.dataset, row.method, row.metric) for row in rows}
    assert found == {
        (name, method, metric)
        for name in ("facts", "asked")
        for method in (*PLACES, *OTHERS, *differences)
        for metric in (*edit_study.METRICS, "score")
    }
    assert all(row.low <= row.value <= row.high for row in rows if row.metric != "score")
    # Keys and values are compared at equal layers and at equal parameters.
    sizes = about["parameters"]
    assert sizes["gate"] == sizes["up"] == sizes["values"]
    assert sizes["keys"] == sizes[edit_study.WIDE] == 2 * sizes["values"]
    assert about["layers"] == [1]
    for name in PLACES:
        own = next(row for row in rows if row.method == name)
        assert own.bytes == 4 * sizes[name]
        # Two rates at one step, and the better one at two.
        for each in ("facts", "asked"):
            tried = about["dev_scores"][each][name]
            assert len(tried) == 3
            assert about["settings"][each][name] == max(tried, key=lambda said: tried[said])
    answers = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("answers/*/*/*.jsonl")}
    edit_study.main(command)
    assert load(tmp_path / "study.json")[1] == rows
    assert answers == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("answers/*/*/*.jsonl")}


def test_settings_are_chosen_on_first_edits_that_are_not_tested(tiny_folder: Path, tmp_path: Path) -> None:
    command = ["--test", file(tmp_path / "facts.jsonl", 3), "--quick", "--beside", "nothing", "ike"]
    command += [
        "--demonstrations",
        file(tmp_path / "others.jsonl", 9),
        "--model",
        str(tiny_folder),
        "--dtype",
        "float32",
    ]
    edit_study.main([*command, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "study.json")])
    about, rows = load(tmp_path / "study.json")
    assert about["beside"] == ["nothing", "ike"]
    # Of three edits two were chosen on.
    assert {row.n for row in rows if row.method == "ike" and row.metric == "efficacy"} == {1}


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--dev", "a", "b"], "as many --dev as --test files"), (["--dev-limit", "0"], "--dev-limit says how many")],
)
def test_edits_to_choose_on_are_needed(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        edit_study.main(["--test", "c", *more])
    assert message in capsys.readouterr().err


def test_layers_without_others_below_them_are_refused() -> None:
    wide = edit_study.places([4, 5], ["1e-3"], ["1e-4"])[edit_study.WIDE]
    assert (wide.options["layers"], wide.rates) == ("[2,3,4,5]", ["1e-3"])
    with pytest.raises(SystemExit, match=r"no 2 layers below \[1, 2\]; give higher --layers"):
        edit_study.places([1, 2], [], [])


def answered(folder: Path, hits: dict[str, list[float]]) -> Path:
    """A folder as ``evaluate`` leaves it: one question for each edit and metric, the first asked twice."""
    out = folder / "answers" / "edit" / "facts" / "one.jsonl"
    out.parent.mkdir(parents=True)
    lines = [
        {"item": item, "question": n, "parts": {metric: [hit, 1.0]}}
        for n, (metric, each) in enumerate(hits.items())
        for item, hit in enumerate(each)
    ]
    out.write_text("".join(json.dumps(line) + "\n" for line in [lines[0], *lines]))
    return folder


def test_a_difference_is_over_the_same_edits(tmp_path: Path) -> None:
    hard, easy = [0.0, 1.0, 0.0, 1.0] * 5, [1.0] * 20
    one = answered(tmp_path / "one", {"efficacy": easy, "paraphrase": hard, "specificity": hard})
    other = answered(tmp_path / "other", {"efficacy": easy, "paraphrase": hard, "specificity": easy})
    like = Result("edit", "facts", "keys", "score", 0.5, 0.4, 0.6, 60, 8, 0.1, {"setting": "x"})
    found = {row.metric: row for row in edit_study.compare("one - other", one, other, like, 0)}
    # What is the same for every edit differs by nothing, however uncertain each number is.
    assert (found["paraphrase"].value, found["paraphrase"].low, found["paraphrase"].high) == (0.0, 0.0, 0.0)
    assert found["specificity"].value == pytest.approx(-0.5)
    assert found["specificity"].low < -0.5 < found["specificity"].high < 0
    assert found["score"].value == pytest.approx(3 / (1 + 2 + 2) - 3 / (1 + 2 + 1))
    assert {row.n for row in found.values()} == {20}
    assert edit_study.compare("one - other", one, other, like, 4)[0].n == 4
