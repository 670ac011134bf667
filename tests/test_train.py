"""The training loop: it teaches, it can be killed at any moment, and it refuses what is not its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from byheart.episode import Batch, Episode, collate
from byheart.errors import CheckpointError, StateMismatchError, TrainingError, UsageError
from byheart.memories import build
from byheart.memory import Memory
from byheart.testing import VOCABULARY, tiny_backbone
from byheart.train import Recipe, Step, train
from tests.samples import weights_hash

RECIPE = Recipe(steps=12, learning_rate=3e-2, warmup=0.1, teacher=0.5, every_segment=0.2)


def batches(number: int) -> Batch:
    """The target repeats the first segment, so only a memory can help."""
    generator = torch.Generator().manual_seed(number)

    def episode() -> Episode:
        text = torch.randint(3, VOCABULARY, (2, 4), generator=generator)
        return Episode((text[0], text[1]), torch.cat([text[0, :1], text[0]]), 1)

    return collate([episode() for _ in range(4)])


def memory() -> Memory:
    return build("compressed-kv", tiny_backbone(), tokens=2, rank=4)


def trained(out: Path, **changed: object) -> list[float]:
    return train(memory(), batches, replace(RECIPE, **changed), out=out, save_every=3).losses


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    out = tmp_path_factory.mktemp("unbroken")
    return out, trained(out)


def parameters(folder: Path) -> dict[str, Tensor]:
    made = memory()
    made.load_pretrained(folder)
    return {name: parameter.detach() for name, parameter in made.named_parameters()}


def test_the_loss_goes_down_and_no_weight_of_the_model_changes(tmp_path: Path) -> None:
    made = memory()
    before = weights_hash(made.backbone)
    losses = train(made, lambda number: batches(number % 4), Recipe(steps=60, learning_rate=3e-2), out=tmp_path).losses
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert weights_hash(made.backbone) == before
    assert all(parameter.grad is None for parameter in made.backbone.model.parameters())
    assert not made.training


def test_what_it_leaves_can_be_loaded_and_tells_how_it_was_made(unbroken: tuple[Path, list[float]]) -> None:
    out, losses = unbroken
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["loss"] for line in lines] == losses
    assert {"learning_rate", "tokens", "seconds", "norm"} <= lines[0].keys()
    recipe = json.loads((out / "recipe.json").read_text())
    assert (recipe["steps"], recipe["mechanism"], recipe["options"]["rank"]) == (12, "compressed-kv", 4)
    assert recipe["versions"].keys() == {"byheart", "torch", "transformers"}
    assert [found.name for found in (out / "checkpoints").iterdir()] == ["step-12"]
    assert parameters(out).keys() == parameters(out / "checkpoints" / "step-12").keys()


@pytest.mark.parametrize("at", [2, 7])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    at: int, tmp_path: Path, unbroken: tuple[Path, list[float]]
) -> None:
    script = "import tests.test_train as t, pathlib, torch; torch.set_num_threads(1); t.trained(pathlib.Path({!r}))"
    metrics = tmp_path / "metrics.jsonl"
    child = subprocess.Popen(
        [sys.executable, "-c", script.format(str(tmp_path))], env={**os.environ, "PYTHONPATH": "."}
    )
    while child.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) < at):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert trained(tmp_path) == unbroken[1]
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    theirs = parameters(unbroken[0])
    for name, parameter in parameters(tmp_path).items():
        assert torch.equal(parameter, theirs[name]), name


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    made = memory()

    def poison(step: Step) -> None:
        if step.step == 4:
            with torch.no_grad():
                made.get_parameter("embeddings").fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"Step 5: the loss is nan.*step-3' is the last good checkpoint"):
        train(made, batches, RECIPE, out=tmp_path, save_every=3, progress=poison)
    assert all(tensor.isfinite().all() for tensor in parameters(tmp_path / "checkpoints" / "step-3").values())


def test_another_recipe_or_model_is_refused_with_both_sides_named(unbroken: tuple[Path, list[float]]) -> None:
    out, _ = unbroken
    with pytest.raises(StateMismatchError, match=r"learning_rate 0\.03; this run has 0\.1"):
        trained(out, learning_rate=0.1)
    with pytest.raises(StateMismatchError, match="with data None; this run has other"):
        train(memory(), batches, RECIPE, out=out, made_of={"data": "other"})
    other = build("compressed-kv", tiny_backbone(seed=1), tokens=2, rank=4)
    with pytest.raises(StateMismatchError, match=rf"this run has {other.backbone.fingerprint}"):
        train(other, batches, RECIPE, out=out)
    with pytest.raises(UsageError, match="is there already"):
        train(memory(), batches, RECIPE, out=out, resume=False)


def test_a_damaged_checkpoint_says_so(tmp_path: Path) -> None:
    trained(tmp_path)
    (tmp_path / "checkpoints" / "step-12" / "optimizer.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="cannot be read"):
        trained(tmp_path)


def test_held_out_batches_are_measured_without_learning_from_them(
    tmp_path: Path, unbroken: tuple[Path, list[float]]
) -> None:
    seen: list[Step] = []
    result = train(
        memory(), batches, RECIPE, out=tmp_path, held_out=[batches(100)], evaluate_every=5, progress=seen.append
    )
    assert result.losses == unbroken[1]
    assert [step.step for step in seen if step.held_out is not None] == [5, 10, 12]
    assert result.held_out == seen[-1].held_out


def test_accumulated_batches_learn_as_one(tmp_path: Path) -> None:
    def halves(number: int) -> Batch:
        whole, part = batches(number // 2), slice(0, 2) if number % 2 == 0 else slice(2, 4)
        return Batch(*(tensor[part] for tensor in vars(whole).values()))

    made, other = memory(), memory()
    whole = train(made, batches, Recipe(steps=3), out=tmp_path / "whole").losses
    parts = train(other, halves, Recipe(steps=3, accumulate=2), out=tmp_path / "parts").losses
    assert parts == pytest.approx(whole, rel=1e-5)


def test_a_memory_without_learned_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'nothing' has nothing to train"):
        train(build("nothing", tiny_backbone()), batches, RECIPE, out=tmp_path)


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    recipe = Recipe(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 1e-3
