"""The gap that a memory closes, and the commands that train and measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from byheart.episode import Batch, Episode, collate
from byheart.errors import InputError, UnknownNameError, UsageError
from byheart.evaluate import closed, gap, score
from byheart.plan import Plan
from byheart.tuning import next_token_loss
from tests.conftest import Run
from tests.samples import backbone, fresh, tokens

TEXTS = [" ".join(f"{word}{n}" for n in range(60)) for word in ("ape", "bee", "cat")]
SMALL = ["--segments", "1,2", "--segment-tokens", 12, "--target-tokens", 8, "--batch", 2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"task": "lm", "context": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def batch(*, seed: int = 0) -> Batch:
    return collate([Episode((tokens(9, seed=seed + n)[0],), tokens(6 - n, seed=seed + 5 + n)[0]) for n in (0, 1)])


def test_scores_are_each_window_s_summed_losses() -> None:
    own, given = backbone(), batch()
    found = score(fresh("full", own), [given, batch(seed=3)])
    assert found.tokens.tolist() == [5, 4, 5, 4]
    target = given.target[1:, :5]
    text = torch.cat([given.segments[1], target], dim=1)
    alone = next_token_loss(own, own.hidden(text)[:, -5:], target)
    torch.testing.assert_close(found.losses[1] / 4, alone.detach())
    assert found.bytes > 0


def test_the_share_is_of_the_summed_difference() -> None:
    floor, ceiling, memory = torch.tensor([4.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])
    assert closed(floor, ceiling, memory).item() == 0.5


def test_full_text_closes_the_gap_and_nothing_leaves_it(data: Path, tiny_folder: Path) -> None:
    shape = {"windows": 6, "history": 2, "segment_tokens": 12, "target_tokens": 8, "batch": 4}
    rows = gap(["window", "compressed-kv"], [str(data)], model=str(tiny_folder), dtype="float32", **shape)
    assert [(row.memory, row.metric) for row in rows] == [
        ("nothing", "loss"),
        ("full", "loss"),
        ("window", "loss"),
        ("window", "gap closed"),
        ("compressed-kv", "loss"),
        ("compressed-kv", "gap closed"),
    ]
    by = {(row.memory, row.metric): row for row in rows}
    # The window holds all of so short a history.
    assert by["window", "gap closed"].value == pytest.approx(1.0, abs=1e-3)
    assert by["window", "gap closed"].low <= 1.001
    assert all(row.low <= row.value <= row.high for row in rows if row.metric == "loss")
    assert {row.n for row in rows} == {6}


def test_several_data_sets_are_also_taken_together(data: Path, tiny_folder: Path) -> None:
    shape = {"windows": 2, "history": 1, "segment_tokens": 12, "target_tokens": 8, "batch": 2}
    rows = gap(["window"], [str(data), f"{data}:3"], model=str(tiny_folder), **shape)
    assert [row.dataset for row in rows] == ["data"] * 8 + ["all"] * 4
    assert rows[-1].n == 4


# ---- commands ----


def test_a_memory_is_trained_goes_on_and_is_measured(run: Run, data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'memory = "compressed-kv"\nsteps = 2\ndata = ["{data}:2"]\noptions = {{rank = 2}}\n')
    flags = ["--recipe", recipe, "--model", tiny_folder, "--out", out, "-o", "tokens=2", *SMALL]
    ran = run("train", *flags, "--steps", 3, "--teacher", 0.5, "--held-out", data, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["losses"] == 3
    assert ran.json["held_out"] > 0
    settled = json.loads((out / "recipe.json").read_text())
    assert (settled["steps"], settled["teacher"]) == (3, 0.5)
    assert (settled["options"]["rank"], settled["options"]["tokens"]) == (2, 2)
    assert settled["data"][0][::2] == ["data.jsonl", 2.0]
    ran = run("train", *flags, "--steps", 3, "--teacher", 0.5, "--held-out", data)
    assert "Trained 3 steps" in ran.out
    refused = run("train", *flags, "--steps", 4, "--teacher", 0.5)
    assert refused.code == 1
    assert "steps 3; this run has 4" in refused.err
    shape = ["--windows", 3, "--history", 2, "--segment-tokens", 12, "--target-tokens", 8]
    ran = run("evaluate", "gap", "--memory", f"{out},window", "--data", data, "--model", tiny_folder, *shape, "--json")
    assert ran.code == 0, ran.err
    assert {row["memory"] for row in ran.json} == {"nothing", "full", str(out), "window"}
    assert "gap closed" in run("evaluate", "gap", "--memory", out, "--data", data, "-m", tiny_folder, *shape).out


def test_settings_that_cannot_be_used_are_named(tmp_path: Path, run: Run) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("stepps = 3\n")
    with pytest.raises(UnknownNameError, match=r"no setting 'stepps'\. Did you mean 'steps'"):
        Plan.of(recipe)
    recipe.write_text("steps = 'many'\n")
    with pytest.raises(UsageError, match="steps must be a whole number; it is 'many'"):
        Plan.of(recipe)
    recipe.write_text("steps = \n")
    with pytest.raises(InputError, match="cannot be read"):
        Plan.of(recipe)
    with pytest.raises(UsageError, match="nothing to train on"):
        Plan.of(None).run(tmp_path / "out")
    assert run("train", "--out", tmp_path / "out", "--segments", "1;2").code == 2


def test_the_recipe_that_is_shipped_can_be_read() -> None:
    plan = Plan.of(Path(__file__).parent.parent / "recipes" / "compressed-kv-concat.toml", steps=7, options={"rank": 4})
    assert (plan.steps, plan.teacher, plan.options["tokens"], plan.options["rank"]) == (7, 1.0, 4, 4)
