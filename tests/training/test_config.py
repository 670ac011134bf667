"""A run as people write it down: what cannot be done is said before the model is opened or the first step is taken."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from byheart.errors import InputError, UnknownNameError, UsageError
from byheart.training.config import TrainingConfig
from byheart.training.loop import Step
from tests.conftest import Run

SMALL: dict[str, Any] = {"segments": [1, 2], "segment_tokens": 16, "target_tokens": 8, "batch": 2, "steps": 2}
NOWHERE = "./no-such-model"


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"{word} " * 80}) + "\n" for word in ("one", "two")), encoding="utf-8")
    return str(path)


def plan(data: str, model: object = NOWHERE, **settings: Any) -> TrainingConfig:
    return TrainingConfig.of(**{**SMALL, "data": [data], "model": str(model), **settings})


def test_a_recipe_file_is_changed_by_flags(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('steps = 3\ntrack = "wandb"\ntoo_long = "cut"\n[options]\nrank = 4\n', encoding="utf-8")
    made = TrainingConfig.of(recipe, steps=None, track="none", options={"tokens": 2})
    assert (made.optimisation.steps, made.saving.track, made.optimisation.too_long, made.options) == (
        3,
        "none",
        "cut",
        {"rank": 4, "tokens": 2},
    )
    with pytest.raises(UnknownNameError, match=r"no setting 'stepps'\. Did you mean 'steps'"):
        TrainingConfig.of(stepps=3)
    with pytest.raises(UsageError, match="steps must be a whole number; it is 'many'"):
        TrainingConfig.of(steps="many")
    with pytest.raises(InputError, match="cannot be read"):
        TrainingConfig.of(tmp_path / "none.toml")


def test_a_run_says_where_it_is(data: str, tiny_folder: Path, tmp_path: Path) -> None:
    began: list[tuple[int, int]] = []
    seen: list[Step] = []
    made = plan(data, tiny_folder, held_out=[data])
    result = made.run(tmp_path / "out", ready=lambda *counts: began.append(counts), progress=seen.append)
    assert [step.step for step in seen] == [1, 2]
    assert result.held_out is not None
    again = made.run(tmp_path / "out", ready=lambda *counts: began.append(counts))
    assert again.losses == result.losses
    assert began == [(0, 2), (2, 2)]


def test_what_is_missing_is_said_before_the_model_is_opened(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"task": "qa", "context": "A.", "question": "B?", "reply": "C"}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="nothing to train on: give --data"):
        TrainingConfig.of(model=NOWHERE).run(tmp_path)
    with pytest.raises(InputError, match=r"Missing: answers\. Fields that are there: context, question, reply, task"):
        plan(str(bad)).run(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install wandb"):
        plan(data, track="wandb").run(tmp_path)
    with pytest.raises(UsageError, match="pip install datasets"):
        plan("someone/stories").run(tmp_path)


def test_a_gpu_that_is_not_there_is_refused(
    data: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device 'cuda' was asked for, but this machine has no GPU"):
        plan(data, tiny_folder, device="cuda").run(tmp_path)


def test_episodes_that_will_not_fit_are_refused_before_the_first_step(
    data: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"40 segments of 16 tokens and a target of 8 have 648 tokens; .* for 512\."):
        plan(data, tiny_folder, segments=[1, 40]).run(tmp_path)
    plan(data, tiny_folder, segments=[1, 40], too_long="cut", steps=1).run(tmp_path)


def test_the_command_trains_and_only_the_first_process_speaks(
    run: Run, data: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "compressed-kv", "--model", tiny_folder, "--data", data, "--segments", "1,2", "--batch", 2]
    command += ["--segment-tokens", 16, "--target-tokens", 8, "--steps", 2, "--too-long", "cut", "--track", "none"]
    ran = run(*command, "--out", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Trained 2 steps: loss ")
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["too_long"] == "cut"
    monkeypatch.setenv("RANK", "1")
    assert run(*command, "--out", tmp_path / "out").out == ""


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ({"title": "A"}, "context"),
        ({"context": 3, "question": "?", "answers": []}, "answers"),
        ({"task": "qa", "answers": {"text": ["b"]}}, "context, question"),
        ({"task": "dialog", "meta": ["a", "b"]}, r"meta\.turns"),
    ],
)
def test_the_missing_field_is_named(row: dict[str, Any], missing: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(InputError, match=rf"Missing: {missing}\."):
        plan(str(path)).run(tmp_path)
