"""Files of answers in FastMem's form: scored, written, and refused with their place. Made up for these tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import InputError, UsageError
from byheart.evaluation import predictions
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.task import Question
from byheart.evaluation.tasks.dialogue import Dialogue
from byheart.evaluation.tasks.faithful import Faithful
from byheart.evaluation.tasks.multitask import Multitask
from byheart.evaluation.tasks.questions import Questions
from byheart.evaluation.tasks.retention import Retention
from tests.conftest import Run

RECORDS = [
    {"input": "who", "context": "A.", "answer": "Ann", "sub_context": f"B{n}.", "sub_answer": f"Bob {n}"}
    for n in range(3)
]
ARTICLES = [
    {"article": "The cats ran far away.", "summary": "Cats ran."},
    {"article": "A barn burned.", "summary": "A barn burned."},
]


def told(index: int, text: str, model: str = "llama3") -> dict[str, Any]:
    return {"input_index": index, "assigned_model": model, "string": [text]}


def kept(folder: Path, name: str, rows: Sequence[Any]) -> str:
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def test_answers_are_matched_with_the_records_that_they_count(tmp_path: Path) -> None:
    data = kept(tmp_path, "nqswap.jsonl", RECORDS)
    said = [
        told(2, "The answer is: Bob 2."),
        told(0, "The answer is: Bob 1."),
        told(1, "Bob 1"),
        told(1, "The answer is: Bob 1", "qwen"),
    ]
    rows = predictions.score(Faithful(), kept(tmp_path, "out.jsonl", said), data)
    assert [(row.method, row.metric, row.value, row.n) for row in rows] == [
        ("llama3", "accuracy", pytest.approx(1 / 3), 3),
        ("llama3", "failures", pytest.approx(1 / 3), 3),
        ("qwen", "accuracy", 1.0, 1),
        ("qwen", "failures", 0.0, 1),
    ]
    assert {(row.task, row.dataset, row.bytes) for row in rows} == {("faithful", "nqswap", 0)}
    # About the other context the same answers are wrong.
    assert predictions.score(Faithful(swapped=False), str(tmp_path / "out.jsonl"), data)[0].value == 0


def test_summaries_are_scored_from_the_command_line(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    data = kept(tmp_path, "xsum_sample_test_3000.jsonl", ARTICLES)
    file = kept(tmp_path, "llama3_xsum_ours.jsonl", [told(0, "Cats run."), told(1, "A barn burned.")])
    ran = run("score", "summary", file, "--data", data, "--json")
    assert ran.code == 0, ran.err
    found = {row["metric"]: (row["value"], row["n"]) for row in ran.json}
    assert found == {"rouge1": (0.75, 2), "rouge2": (0.5, 2), "rouge_l": (0.75, 2)}
    ran = run("score", "summary", file, "--data", data, "-o", "dataset=xsum")
    assert "llama3" in ran.out
    assert "rouge l" in ran.out
    assert "0.750" in ran.out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "'.*out.jsonl' holds no prediction"),
        ([{"input_index": 0, "string": ["a"]}], "prediction 1, has no 'assigned_model'; a prediction has input_index,"),
        ([told(0, "a"), told(True, "a")], "prediction 2, has the input_index True; it must be a whole number, 0 for"),
        ([told(-1, "a")], "prediction 1, has the input_index -1"),
        ([{**told(0, ""), "string": ["a", "b"]}], r"prediction 1, has no one text in 'string', but \['a', 'b'\]"),
        ([{**told(0, ""), "string": [None]}], "prediction 1, has no one text"),
        ([told(0, "a"), told(0, "b")], "prediction 2, is a second answer of 'llama3' to record 0: two runs wrote into"),
        (
            [told(3, "a")],
            "answers record 3 as 'llama3', counted from 0, but '.*' has 3, of which faithful asks about 3",
        ),
        (["x"], "line 1 is no JSON object"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_place(tmp_path: Path, rows: list[Any], message: str) -> None:
    data = kept(tmp_path, "nqswap.jsonl", RECORDS)
    with pytest.raises(InputError, match=message):
        predictions.score(Faithful(), kept(tmp_path, "out.jsonl", rows), data)


def test_tasks_without_words_or_without_an_answer_for_each_record_are_refused(
    tiny_folder: Path, tmp_path: Path
) -> None:
    records = [{"context": f"A cat {n}.", "question": "Who?", "answers": ["cat"], "dataset": "boolq"} for n in range(3)]
    data = kept(tmp_path, "squad.jsonl", [{**record, "label": 0} for record in records])
    file = kept(tmp_path, "out.jsonl", [told(0, "a cat")])
    with pytest.raises(UsageError, match="dialogue measures likelihoods, so no words can be scored"):
        predictions.score(Dialogue(), file, data)
    with pytest.raises(UsageError, match="retention has no question that belongs to one record"):
        predictions.score(Retention(distractors=1), file, data)
    assert {row.metric: row.value for row in predictions.score(Questions(), file, data)}["contains"] == 1
    for task in (Retention(distractors=1), Multitask()):
        with pytest.raises(UsageError, match=f"{task.name} has no answer in words for each record"):
            evaluate(task, data, ["nothing"], model=str(tiny_folder), predictions=tmp_path / "out")


@pytest.mark.parametrize("answers", [[], [(Question(record=0), "a")]])
def test_answers_that_belong_to_no_record_are_not_written(tmp_path: Path, answers: list[tuple[Question, str]]) -> None:
    with pytest.raises(UsageError, match="do not belong to one record each"):
        predictions.write(tmp_path / "out.jsonl", "full", answers)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_run_is_written_in_this_form_and_scores_as_it_did(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    data, out = kept(tmp_path, "nqswap.jsonl", [{**row, "sub_answer": "no"} for row in RECORDS]), tmp_path / "answers"
    methods = "full:max_tokens=2,nothing:max_tokens=2"
    flags = ["--data", data, "-m", tiny_folder, "-o", "published=true", "--out", tmp_path / "out", "--json"]
    ran = run("evaluate", "faithful", "--method", methods, *flags)
    # A run that is there is written without asking again.
    again = run("evaluate", "faithful", "--method", methods, *flags, "--predictions", out)
    assert again.code == 0, again.err
    assert again.json == ran.json
    files = sorted(out.glob("faithful_nqswap_*.jsonl"))
    assert len(files) == 2
    for file, method in zip(files, methods.split(","), strict=True):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [(line["input_index"], line["assigned_model"]) for line in lines] == [(n, method) for n in range(3)]
        found = run("score", "faithful", file, "--data", data, "-o", "published=true", "--json").json
        measured = [row for row in ran.json if row["method"] == method]
        assert [(row["metric"], row["value"], row["low"], row["high"]) for row in found] == [
            (row["metric"], row["value"], row["low"], row["high"]) for row in measured
        ]
