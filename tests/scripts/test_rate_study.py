"""The study of learning rates runs from its command line to its rows; what it measures is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

from byheart.evaluation.results import load
from scripts import rate_study

WORDS = " ".join(f"word{n}" for n in range(30))
RECORDS = [
    {"task": "qa", "context": f"{name} wrote it. {WORDS}", "question": f"who wrote {n}", "answers": [name]}
    for n, name in enumerate(("Anna", "Bert", "Cleo"))
]


def test_an_answer_is_replaced_by_one_that_looks_alike() -> None:
    others = [{**RECORDS[0], "answers": ["1975"], "context": f"In 1975. {WORDS}"}, {**RECORDS[0], "answers": []}]
    found = rate_study.swap([*RECORDS, *others], 9)
    # The year has no other one to stand in for it.
    assert len(found) == 3
    for record in found:
        (answer,) = record["answers"]
        own = RECORDS[int(record["question"][-1])]["answers"][0]
        assert answer in {"Anna", "Bert", "Cleo"} - {own}
        assert record["context"].startswith(f"{answer} wrote it.")
        assert own not in record["context"]


def test_every_setting_is_measured_plainly_and_primed_beside_its_control(tiny_folder: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "nq.jsonl", tmp_path / "rates.json"
    data.write_text("".join(f"{json.dumps(each)}\n" for each in RECORDS))
    command = ["--train", str(data), "--model", str(tiny_folder), "--dtype", "float32", "--out", str(out)]
    command += ["--runs", str(tmp_path / "runs"), "--settings", "learning_rate=1e-2;steps=2", "--limit", "3"]
    rate_study.main(command)
    _, rows = load(out)
    tuned = "last-ffn:keep_text=false;learning_rate=1e-2;steps=2"
    assert {row.method for row in rows} == {"nothing", tuned, f"{tuned};control=other"}
    found = {(row.method, row.metric, row.conditions["primed"]) for row in rows}
    for method in ("nothing", tuned):
        assert (method, "failures", False) in found
        assert (method, "failures", True) not in found
        assert (method, "gold_loss", True) in found
    assert (tuned, "gold_loss_over_other_text", True) in found
    rate_study.main(command)
    assert [row.flat() for row in load(out)[1]] == [row.flat() for row in rows]
