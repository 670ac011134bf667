"""The commands that train and then measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from byheart.cli import terminal
from tests.conftest import Run

TEXTS = [" ".join(f"{word}{n}" for n in range(60)) for word in ("ape", "bee", "cat")]
SMALL = ["--segments", "1,2", "--segment-tokens", 12, "--target-tokens", 8, "--batch", 2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"task": "lm", "context": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def test_a_memory_is_trained_goes_on_and_is_measured(run: Run, data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'method = "compressed-kv"\nsteps = 2\ndata = ["{data}:2"]\noptions = {{rank = 2}}\n')
    flags = ["--recipe", recipe, "--model", tiny_folder, "--out", out, "-o", "tokens=2", *SMALL]
    ran = run("train", *flags, "--steps", 3, "--teacher", 0.5, "--held-out", data, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["losses"] == 3
    assert ran.json["held_out"] > 0
    recipe_kept = json.loads((out / "recipe.json").read_text())
    assert (recipe_kept["steps"], recipe_kept["teacher"]) == (3, 0.5)
    assert (recipe_kept["options"]["rank"], recipe_kept["options"]["tokens"]) == (2, 2)
    assert recipe_kept["data"][0][::2] == ["data.jsonl", 2.0]
    ran = run("train", *flags, "--steps", 3, "--teacher", 0.5, "--held-out", data)
    assert "Trained 3 steps" in ran.out
    refused = run("train", *flags, "--steps", 4, "--teacher", 0.5)
    assert refused.code == 1
    assert "steps 3; this run has 4" in refused.err
    given = ["history=[2]", "segment_tokens=12", "target_tokens=8"]
    shape = ["--limit", 3, *(part for option in given for part in ("-o", option))]
    ran = run("evaluate", "gap", "--method", f"{out},window", "--data", data, "--model", tiny_folder, *shape, "--json")
    assert ran.code == 0, ran.err
    assert {row["method"] for row in ran.json} == {"nothing", "full", str(out), "window"}
    assert "gap closed" in run("evaluate", "gap", "--method", out, "--data", data, "-m", tiny_folder, *shape).out


def test_training_says_in_a_log_file_how_far_it_is(
    run: Run, data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    flags = ["--model", tiny_folder, "--out", tmp_path / "out", "--data", data, "-o", "tokens=2", "--steps", 2, *SMALL]
    ran = run("train", "compressed-kv", *flags)
    assert ran.code == 0, ran.err
    assert [line.partition(", loss")[0] for line in ran.err.splitlines()] == [
        "training: step 1 of 2",
        "training: step 2 of 2",
    ]
    monkeypatch.setenv("RANK", "1")
    assert run("train", "compressed-kv", *flags[:3], tmp_path / "second", *flags[4:]).err == ""


def test_a_long_term_pool_is_trained_and_asked_after_other_texts(
    run: Run, data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out, asked = tmp_path / "long", tmp_path / "cats.jsonl"
    rows = [
        {"context": f"The cat {n} is {n}.", "question": "Which?", "answers": [n]} for n in ("Ada", "Bo", "Cy", "Di")
    ]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"slots": 4, "blocks": 2, "recalled": 1, "merge_every": 2, "width": 4, "longest": 12, "shortest": 4}
    given = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    shape = ["--segments", 3, "--segment-tokens", 12, "--target-tokens", 8, "--batch", 2, "--steps", 2]
    ran = run("train", "long-term-pool", *given, "--model", tiny_folder, "--data", data, "--out", out, *shape, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["losses"] == 2
    flags = ["-o", "distractors=2", "-o", "every=2", "--limit", 1, "--model", tiny_folder, "--dtype", "float32"]
    spec = f"{out}:max_tokens=2"
    ran = run("evaluate", "retention", "--method", spec, "--data", asked, *flags, "--json")
    assert ran.code == 0, ran.err
    found = {(row["metric"], row.get("distractors")) for row in ran.json if row["method"] == spec}
    assert {("accuracy", 0), ("accuracy", 2), ("law", 2)} <= found
    # What is kept is written into a memory and found again by each question.
    made = ["--model", tiny_folder, "--method", out, "--dtype", "float32"]
    assert run("write", "cat", *made, stdin=b"The cat is called Muck. " * 4).code == 0
    ran = run("ask", "cat", "Who?", "--max-tokens", 2, "--json")
    assert (ran.code, ran.json["method"]) == (0, "long-term-pool")
