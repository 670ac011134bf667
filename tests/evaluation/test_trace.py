"""One text under a profiler. The records are made up for these tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from byheart.errors import InputError, UsageError
from byheart.evaluation.tasks.dialogue import Dialogue
from byheart.evaluation.tasks.faithful import Faithful
from byheart.evaluation.trace import trace
from tests.conftest import Run


@pytest.fixture
def data(tmp_path: Path) -> str:
    records = [{"context": "Ann. " * n, "question": "who", "answers": ["Ann"]} for n in (1, 3, 9)]
    (tmp_path / "nq.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return str(tmp_path / "nq.jsonl")


def test_one_long_text_is_traced_for_each_method(run: Run, data: str, tiny_folder: Path, tmp_path: Path) -> None:
    methods = "nothing:max_tokens=1,last-ffn:steps=1;max_tokens=3"
    flags = ["--data", data, "-m", tiny_folder, "--tokens", 20, "--out", tmp_path / "out"]
    ran = run("trace", "faithful", "--method", methods, *flags, "--json")
    assert ran.code == 0, ran.err
    plain, tuned = ran.json
    assert [row["method"] for row in ran.json] == methods.split(",")
    # The text of nine words is the only one that is as long; a character is a token here.
    assert all(row["tokens"] >= 9 * 5 for row in ran.json)
    assert all(row["write_seconds"] >= 0 and row["first_token_seconds"] > 0 for row in ran.json)
    assert plain["token_seconds"] == 0
    assert tuned["peak_bytes"] is None
    for row in ran.json:
        assert json.loads(Path(row["file"]).read_text())["traceEvents"]
    names = {event.get("name", "") for event in json.loads(Path(tuned["file"]).read_text())["traceEvents"]}
    assert any("AdamW" in name for name in names)
    assert "last-ffn:steps=1" in run("trace", "faithful", "--method", methods, *flags).out


def test_what_cannot_be_traced_is_refused(data: str, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No text of '.*' has 2,500 tokens; the longest has 4\d\. Ask for fewer"):
        trace(Faithful(), data, ["nothing"], tmp_path / "out", model=str(tiny_folder))
    with pytest.raises(UsageError, match="dialogue measures likelihoods; take a task with answers in words"):
        trace(Dialogue(), data, ["nothing"], tmp_path / "out", model=str(tiny_folder))
