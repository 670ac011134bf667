"""The training loop: it teaches, it can be killed at any moment, and it refuses what is not its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import byheart
from byheart.errors import CheckpointError, StateMismatchError, TrainingError, UnknownNameError, UsageError
from byheart.methods import build
from byheart.methods.compressed_kv import CompressedKV
from byheart.protocol.checkpoint import load_pretrained
from byheart.protocol.episode import Batch, Episode, collate
from byheart.protocol.method import Method
from byheart.protocol.objective import TARGETS_ONLY, Objective
from byheart.testing import VOCABULARY, tiny_backbone
from byheart.training import checkpoints
from byheart.training.batches import fit_positions, open_batches
from byheart.training.loop import Step, train
from byheart.training.recipe import Recipe
from tests.samples import weights_hash

RECIPE = Recipe(steps=12, learning_rate=3e-2, warmup=0.1, objective=Objective(teacher=0.5, every_segment=0.2))


def batches(number: int) -> Batch:
    """The target repeats the first segment, so only a memory can help."""
    return collate(episodes(number, 4))


def episodes(seed: int, count: int, *, segments: int = 2) -> list[Episode]:
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(3, VOCABULARY, (segments, 4), generator=generator) for _ in range(count)]
    return [Episode(tuple(text), torch.cat([text[0, :1], text[0]]), 1) for text in texts]


def method() -> Method:
    return build("compressed-kv", tiny_backbone(), tokens=2, rank=4)


def trained(out: Path, **changed: object) -> list[float]:
    return train(method(), batches, replace(RECIPE, **changed), out=out, save_every=3).losses


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    out = tmp_path_factory.mktemp("unbroken")
    return out, trained(out)


def parameters(folder: Path) -> dict[str, Tensor]:
    made = method()
    load_pretrained(made, folder)
    return {name: parameter.detach() for name, parameter in made.named_parameters()}


def test_the_loss_goes_down_and_no_weight_of_the_model_changes(tmp_path: Path) -> None:
    made = method()
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
    assert (recipe["steps"], recipe["method"], recipe["options"]["rank"]) == (12, "compressed-kv", 4)
    assert recipe["versions"].keys() == {"byheart", "torch", "transformers"}
    assert [found.name for found in (out / "checkpoints").iterdir()] == ["step-12"]
    assert parameters(out).keys() == parameters(out / "checkpoints" / "step-12").keys()


@pytest.mark.parametrize("at", [2, pytest.param(7, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_as_if_nothing_had_been(
    at: int, tmp_path: Path, unbroken: tuple[Path, list[float]]
) -> None:
    script = (
        "import tests.training.test_loop as t, pathlib, torch; torch.set_num_threads(1); t.trained(pathlib.Path({!r}))"
    )
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
    made = method()

    def poison(step: Step) -> None:
        if step.step == 4:
            with torch.no_grad():
                made.get_parameter("embeddings").fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"Step 5: the loss is nan.*step-3' is the last good checkpoint"):
        train(made, batches, RECIPE, out=tmp_path, save_every=3, progress=poison)
    assert all(tensor.isfinite().all() for tensor in parameters(tmp_path / "checkpoints" / "step-3").values())


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")],
    ids=["OSError", "SafetensorError"],
)
def test_a_full_disk_stops_the_run_keeps_the_checkpoint_and_resumes(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: tuple[Path, list[float]]
) -> None:
    save_file, saved = checkpoints.save_file, []

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        saved.append(path)
        save_file(tensors, path)
        if len(saved) == 2:
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_file", full)
        with pytest.raises(TrainingError, match=r"No space left.*step-3' is the last good checkpoint; make room"):
            trained(tmp_path)
    assert [found.name for found in (tmp_path / "checkpoints").iterdir()] == ["step-3"]
    assert trained(tmp_path) == unbroken[1]


def test_a_metrics_file_that_cannot_be_written_is_a_training_error(tmp_path: Path) -> None:
    def spoil(step: Step) -> None:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()

    with pytest.raises(TrainingError, match=r"Step 2 could not be written into.*There is no checkpoint yet"):
        train(method(), batches, RECIPE, out=tmp_path, progress=spoil)


def test_another_recipe_or_model_is_refused_with_both_sides_named(unbroken: tuple[Path, list[float]]) -> None:
    out, _ = unbroken
    with pytest.raises(StateMismatchError, match=r"learning_rate 0\.03; this run has 0\.1"):
        trained(out, learning_rate=0.1)
    with pytest.raises(StateMismatchError, match="with data None; this run has other"):
        train(method(), batches, RECIPE, out=out, made_of={"data": "other"})
    other = build("compressed-kv", tiny_backbone(seed=1), tokens=2, rank=4)
    with pytest.raises(StateMismatchError, match=rf"this run has {other.backbone.fingerprint}"):
        train(other, batches, RECIPE, out=out)
    with pytest.raises(UsageError, match="is there already"):
        train(method(), batches, RECIPE, out=out, resume=False)


def test_an_option_of_the_memory_is_named_by_itself(unbroken: tuple[Path, list[float]]) -> None:
    other = build("compressed-kv", tiny_backbone(), tokens=2, rank=4, alpha=8.0)
    with pytest.raises(StateMismatchError, match=r"with options\.alpha 16\.0; this run has 8\.0"):
        train(other, batches, RECIPE, out=unbroken[0])


def test_a_checkpoint_older_than_a_setting_resumes_with_its_default(
    tmp_path: Path, unbroken: tuple[Path, list[float]]
) -> None:
    shutil.copytree(unbroken[0], tmp_path / "old")
    told = tmp_path / "old" / "checkpoints" / "step-12" / "trainer.json"
    progress = json.loads(told.read_text())
    assert "processes" not in progress["recipe"]
    del progress["recipe"]["too_long"], progress["recipe"]["options"]["sink"]
    told.write_text(json.dumps(progress))
    assert trained(tmp_path / "old") == unbroken[1]
    with pytest.raises(StateMismatchError, match="with too_long refuse; this run has cut"):
        trained(tmp_path / "old", too_long="cut")


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
        method(), batches, RECIPE, out=tmp_path, held_out=[batches(100)], evaluate_every=5, progress=seen.append
    )
    assert result.losses == unbroken[1]
    assert [step.step for step in seen if step.held_out is not None] == [5, 10, 12]
    assert result.held_out == seen[-1].held_out


def test_accumulated_batches_learn_as_one(tmp_path: Path) -> None:
    def halves(number: int) -> Batch:
        whole, part = batches(number // 2), slice(0, 2) if number % 2 == 0 else slice(2, 4)
        return Batch(*(tensor[part] for tensor in vars(whole).values()))

    made, other = method(), method()
    whole = train(made, batches, Recipe(steps=3), out=tmp_path / "whole").losses
    parts = train(other, halves, Recipe(steps=3, accumulate=2), out=tmp_path / "parts").losses
    assert parts == pytest.approx(whole, rel=1e-5)


# ---- given episodes ----


def test_episodes_are_taken_in_an_order_of_their_own_that_resumes(tmp_path: Path) -> None:
    given = episodes(0, 5) + episodes(1, 3, segments=3)
    recipe = replace(RECIPE, steps=7, seed=3)
    whole = byheart.train(method(), given, recipe, out=tmp_path / "whole", batch=2, held_out=given[:4])
    part = tmp_path / "part"

    def stop(step: Step) -> None:
        if step.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        byheart.train(method(), given, recipe, out=part, batch=2, save_every=2, progress=stop)
    assert byheart.train(method(), given, recipe, out=part, batch=2).losses == whole.losses
    assert whole.held_out is not None
    with pytest.raises(StateMismatchError, match="with episodes"):
        byheart.train(method(), given[1:], recipe, out=part, batch=2)


def test_given_episodes_are_dealt_by_length() -> None:
    """Each once, in batches that differ from those of ``packed=1`` in less padding alone."""
    tokens = torch.arange(1, 40)
    given = [Episode((), tokens[: 3 + n]) for n in (30, 1, 2, 29, 0, 31, 28, 3, 15)]
    loose, told = open_batches(given, 2, 1, seed=0)
    packed, about = open_batches(given, 2, 4, seed=0)
    lengths = [sorted(packed(n).labels.sum(1).tolist()) for n in range(10)]
    assert sorted(length for each in lengths[:5] for length in each) == sorted(len(each.target) - 1 for each in given)
    assert lengths[:5] != lengths[5:]
    assert sum(packed(n).target.numel() for n in range(5)) < sum(loose(n).target.numel() for n in range(5))
    assert "packed" not in told
    assert about == {**told, "packed": 4}


def test_every_episode_is_seen_once_each_time_through() -> None:
    given = episodes(0, 5) + episodes(1, 3, segments=3)
    source, _ = open_batches(given, 2, 1, seed=0)

    def seen(numbers: range) -> list[tuple[int, ...]]:
        return [tuple(row.tolist()) for number in numbers for row in source(number).target]

    first, second = seen(range(5)), seen(range(5, 10))
    assert sorted(first) == sorted(second) == sorted(tuple(each.target.tolist()) for each in given)
    assert first != second
    assert seen(range(5)) == first


def test_no_episodes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no episodes to train on"):
        train(method(), [], RECIPE, out=tmp_path)


# ---- episodes that are too long ----


def short(positions: int) -> Method:
    return build("compressed-kv", tiny_backbone(max_position_embeddings=positions), tokens=2, rank=4)


def test_an_episode_beyond_the_models_positions_is_refused_or_cut(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"has 13 tokens, 5 of them its target; the model has positions for 12\..*'cut'"
    ):
        train(short(12), batches, RECIPE, out=tmp_path)
    cut = train(short(12), batches, replace(RECIPE, steps=2, too_long="cut"), out=tmp_path)
    assert len(cut.losses) == 2
    with pytest.raises(UsageError, match="5 of them its target; the model has positions for 5"):
        train(short(5), batches, replace(RECIPE, too_long="cut"), out=tmp_path / "target")
    with pytest.raises(UnknownNameError, match="no value of too_long 'trim'"):
        train(short(12), batches, replace(RECIPE, too_long="trim"), out=tmp_path)


def test_what_is_cut_is_the_oldest_text() -> None:
    long, other = episodes(0, 2, segments=3)
    ragged = Episode((other.segments[0][:1], other.segments[1][:2], other.segments[2]), other.target)
    batch = collate([long, ragged])
    # Positions for the target and 6 tokens of text: segment 0 is gone, and half of the longer segment 1.
    fitted = fit_positions(batch, 11, cut=True)
    assert [[row.tolist() for row in fitted.rows(index)] for index in range(2)] == [
        [[long.segments[1][2:].tolist()], [ragged.segments[1].tolist()]],
        [[long.segments[2].tolist()], [ragged.segments[2].tolist()]],
    ]
    assert fit_positions(batch, 17, cut=False) is batch


# ---- several processes ----


class Poisoned(CompressedKV):
    """Its fifth loss is no number, in the second process alone."""

    calls = 0

    def loss(self, batch: Batch, objective: Objective = TARGETS_ONLY) -> Tensor:
        self.calls += 1
        value = CompressedKV.loss(self, batch, objective)
        return value * float("nan") if self.calls == 5 and os.environ["RANK"] == "1" else value


def one_of_two(out: Path) -> None:
    """What each of two processes does: a run, one that breaks and resumes, one whose layers are shared out."""
    recipe, seen = replace(RECIPE, steps=6), []

    def run(made: Method, name: str) -> list[float]:
        held = [batches(number) for number in (100, 101, 102)]
        result = train(
            made, batches, recipe, out=out / name, save_every=2, held_out=held, progress=lambda s: seen.append(s.step)
        )
        return [*result.losses, result.held_out or 0.0]

    whole, said = run(method(), "whole"), ""
    try:
        run(Poisoned(tiny_backbone(), tokens=2, rank=4), "broken")
    except TrainingError as error:
        said = str(error)
    resumed = run(method(), "broken")
    sharded = method()
    assert sharded.backbone.fingerprint
    for layer in sharded.backbone.layers:
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    # Processes that share layers must call them equally often.
    shared = train(sharded, batches, recipe, out=out / "sharded").losses
    told = {"whole": whole, "resumed": resumed, "sharded": shared, "said": said, "seen": seen}
    (out / f"process-{os.environ['RANK']}.json").write_text(json.dumps(told))


@pytest.mark.slow
def test_two_processes_learn_as_one_that_accumulates_stop_together_and_resume(tmp_path: Path) -> None:
    script = f"import tests.training.test_loop as t, pathlib; t.one_of_two(pathlib.Path({str(tmp_path)!r}))"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": "."},
        )
        for rank in range(2)
    ]
    assert [each.wait(timeout=120) for each in started] == [0, 0]
    first, second = (json.loads((tmp_path / f"process-{rank}.json").read_text()) for rank in range(2))
    held = [batches(number) for number in (100, 101, 102)]
    alone = train(method(), batches, replace(RECIPE, steps=6, accumulate=2), out=tmp_path / "one", held_out=held)
    assert first["whole"] == pytest.approx([*alone.losses, alone.held_out], abs=1e-5)
    assert first["whole"] == first["resumed"] == second["whole"] == second["resumed"]
    assert first["sharded"] == pytest.approx(alone.losses, abs=1e-5)
    for process in (first, second):
        assert "Step 5: the loss is nan" in process["said"]
        assert "step-4' is the last good checkpoint" in process["said"]
    assert (first["seen"], second["seen"]) == ([*range(1, 7), *range(1, 5), 5, 6], [])
    assert json.loads((tmp_path / "whole" / "recipe.json").read_text())["processes"] == 2
    with pytest.raises(StateMismatchError, match="with processes 2; this run has 1"):
        train(method(), batches, replace(RECIPE, steps=6), out=tmp_path / "whole")


# ---- the rest ----


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
