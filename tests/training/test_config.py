"""A run as people write it down: what cannot be done is said before the model is opened or the first step is taken."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from byheart.errors import InputError, UsageError
from byheart.protocol.objective import Objective
from byheart.training.config import TrainingConfig
from byheart.training.loop import Step
from byheart.training.settings import flatten
from tests.conftest import Run
from tests.samples import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SMALL: dict[str, Any] = {"segments": [1, 2], "segment_tokens": 16, "target_tokens": 8, "batch": 2, "steps": 2}
NOWHERE = "./no-such-model"


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"{word} " * 80}) + "\n" for word in ("one", "two")), encoding="utf-8")
    return str(path)


def config(data: str, model: object = NOWHERE, **settings: Any) -> TrainingConfig:
    return TrainingConfig.of(**{**SMALL, "data": [data], "model": str(model), **settings})


# ---- settings ----


def toml(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_file_is_changed_by_flags(tmp_path: Path) -> None:
    recipe = toml(tmp_path, 'steps = 3\ntrack = "wandb"\ntoo_long = "cut"\n[options]\nrank = 4\n')
    made = TrainingConfig.of(recipe, steps=None, track="none", options={"tokens": 2})
    optimisation = made.optimisation
    assert (optimisation.steps, made.saving.track, optimisation.too_long, made.options) == (
        3,
        "none",
        "cut",
        {"rank": 4, "tokens": 2},
    )


def test_a_flag_changes_what_a_table_of_its_section_says(tmp_path: Path) -> None:
    recipe = toml(tmp_path, "[optimisation]\nsteps = 3\nseed = 5\n[optimisation.objective]\nteacher = 0.5\n")
    made = TrainingConfig.of(recipe, steps=7, every_segment=1)
    assert (made.optimisation.steps, made.optimisation.seed) == (7, 5)
    assert made.optimisation.objective == Objective(teacher=0.5, every_segment=1)


def test_tables_and_flat_names_mean_the_same(tmp_path: Path) -> None:
    flat = toml(tmp_path, 'method = "adapter"\ndata = ["a"]\nsegments = [1, 2]\nteacher = 0.5\nsave_every = 7\n')
    expected = TrainingConfig.of(flat)
    tables = (
        'method = "adapter"\n[sources]\ndata = ["a"]\n[episodes]\nsegments = [1, 2]\n'
        "[objective]\nteacher = 0.5\n[saving]\nsave_every = 7\n"
    )
    assert TrainingConfig.of(toml(tmp_path, tables)) == expected
    assert expected.sources.data == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps = 3", r"no setting 'stepps'\. Did you mean 'steps'"),
        ("[sources]\nstepps = 3", r"no setting 'stepps'\. Did you mean 'steps'"),
        ("steps = 'many'", "steps must be a whole number; it is 'many'"),
        ("segments = 4", "segments must be a list of whole numbers; it is 4"),
        ("data = [3]", r"data must be a list of texts; it is \[3\]"),
        ("checkpoint_writes = 1", "checkpoint_writes must be true or false; it is 1"),
        ("options = 'rank'", "options must be a table; it is 'rank'"),
        ("optimisation = 3", "no setting 'optimisation'"),
    ],
)
def test_a_recipe_file_with_a_setting_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingConfig.of(toml(tmp_path, text))


@pytest.mark.parametrize("raw", [b"steps = ", b"\xff\xfe", None])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, raw: bytes | None) -> None:
    path = tmp_path / "recipe.toml"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(InputError, match=r"Recipe '.*recipe\.toml' cannot be read"):
        TrainingConfig.of(path)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_of_the_repository_says_what_it_said(path: Path) -> None:
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    config = TrainingConfig.of(path)
    values = flatten(config)
    defaults = flatten(TrainingConfig())
    assert values == {**defaults, **written}
    assert written.keys() <= defaults.keys()


def test_the_stages_of_the_shipped_recipe_build_on_one_another() -> None:
    first, second, last = (
        TrainingConfig.of(ROOT / "recipes" / f"{name}.toml", steps=7, options={"rank": 4})
        for name in ("compressed-kv-concat-1", "compressed-kv-concat-2", "compressed-kv-concat")
    )
    assert (first.optimisation.steps, first.options["tokens"], first.options["rank"]) == (7, 4, 4)
    assert (second.episodes.recall, second.method) == (0.5, "trained/compressed-kv-concat-1")
    assert (last.episodes.recall, last.method) == (0.7, "trained/compressed-kv-concat-2")


def test_without_a_file_or_flags_there_are_defaults() -> None:
    assert TrainingConfig.of() == TrainingConfig()
    assert TrainingConfig.of(steps=None, options=None) == TrainingConfig()


def test_what_decides_a_run_is_recorded_by_flat_names() -> None:
    """So that a checkpoint of an earlier version still resumes."""
    recorded = ["steps", "learning_rate", "warmup", "schedule", "clip", "weight_decay", "accumulate"]
    recorded += ["teacher", "every_segment", "checkpoint_writes", "carried", "full_pool", "revisit", "too_long", "seed"]
    assert list(flatten(TrainingConfig().optimisation)) == recorded


# ---- a run ----


def test_a_run_says_where_it_is(data: str, tiny_folder: Path, tmp_path: Path) -> None:
    began: list[tuple[int, int]] = []
    seen: list[Step] = []
    made = config(data, tiny_folder, held_out=[data])
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
        config(str(bad)).run(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install wandb"):
        config(data, track="wandb").run(tmp_path)
    with pytest.raises(UsageError, match=r"pip install 'byheart\[hub\]'"):
        config("someone/stories").run(tmp_path)


def test_a_gpu_that_is_not_there_is_refused(
    data: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device 'cuda' was asked for, but this machine has no GPU"):
        config(data, tiny_folder, device="cuda").run(tmp_path)


def test_episodes_that_will_not_fit_are_refused_before_the_first_step(
    data: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"40 segments of 16 tokens and a target of 8 have 648 tokens; .* for 512\."):
        config(data, tiny_folder, segments=[1, 40]).run(tmp_path)
    config(data, tiny_folder, segments=[1, 40], too_long="cut", steps=1).run(tmp_path)


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
        config(str(path)).run(tmp_path)
