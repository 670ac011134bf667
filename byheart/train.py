"""The one training loop: a memory's learned parts by AdamW, the model frozen; every mechanism differs by its ``loss``.

A run is decided by its recipe and its batches, which are a function of their number. So a run that was killed goes on
from its last checkpoint and ends with the very losses of an unbroken one. What a batch is made of is not known here.

    out/metrics.jsonl       a line a step
    out/checkpoints/        the newest, see ``checkpoints``
    out/memory.safetensors, memory.json, recipe.json    at the end: the memory, and all that decided it
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from byheart import checkpoints
from byheart.checkpoints import Progress
from byheart.episode import Batch
from byheart.errors import TrainingError, UsageError
from byheart.memory import Memory, positive


@dataclass(frozen=True)
class Recipe:
    """What decides a run, beside its memory and its batches.

    ``accumulate`` batches make a step. ``warmup`` is the share of the steps in which the learning rate rises; then it
    falls to 0 by a cosine. ``clip`` bounds the norm of the gradients. ``teacher`` and ``every_segment`` are those of
    ``Memory.loss``.
    """

    steps: int
    learning_rate: float = 3e-4
    warmup: float = 0.03
    clip: float = 1.0
    weight_decay: float = 0.0
    accumulate: int = 1
    teacher: float = 0.0
    every_segment: float = 0.0
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, from 0 on."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))


@dataclass(frozen=True)
class Step:
    """One step as it went; ``norm`` is the gradients' before clipping, ``held_out`` the loss on held-out batches."""

    step: int
    loss: float
    learning_rate: float
    norm: float
    tokens: int
    seconds: float
    held_out: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """A trained memory in the folder ``path``; ``losses`` has one number a step."""

    path: str
    losses: list[float]
    held_out: float | None
    tokens: int
    seconds: float


def train(
    memory: Memory,
    batches: Callable[[int], Batch],
    recipe: Recipe,
    *,
    out: str | Path,
    made_of: Mapping[str, Any] | None = None,
    held_out: Sequence[Batch] = (),
    evaluate_every: int = 0,
    save_every: int = 100,
    resume: bool = True,
    progress: Callable[[Step], None] | None = None,
) -> TrainResult:
    """Train ``memory`` and save it into ``out``.

    Args:
        batches: the batch of a number from 0 on; the same whenever it is asked.
        made_of: what decides ``batches``, in types that JSON has; kept, and compared when a run goes on.
        held_out: batches to measure every ``evaluate_every`` steps (0: never) and at the end.
        resume: go on from the checkpoint in ``out``, if there is one.

    Raises TrainingError at a loss that is no number, StateMismatchError for another run's checkpoint, UsageError.
    """
    positive(steps=recipe.steps, learning_rate=recipe.learning_rate, accumulate=recipe.accumulate, clip=recipe.clip)
    positive(save_every=save_every)
    run = _Run(memory, recipe, Path(out), _settled(memory, recipe, made_of or {}), resume=resume)
    start, tokens, held = time.monotonic(), 0, None
    with torch.random.fork_rng(), _training(memory):
        made = _ahead(batches, range(len(run.losses) * recipe.accumulate, recipe.steps * recipe.accumulate))
        for step in range(len(run.losses), recipe.steps):
            taken = run.step(step, islice(made, recipe.accumulate))
            number = step + 1
            if held_out and (number == recipe.steps or (evaluate_every and number % evaluate_every == 0)):
                held = held_out_loss(memory, held_out)
                taken = Step(**{**vars(taken), "held_out": held})
            run.note(taken)
            if number % save_every == 0 or number == recipe.steps:
                run.save()
            tokens += taken.tokens
            if progress is not None:
                progress(taken)
    run.finish()
    return TrainResult(str(out), run.losses, held, tokens, time.monotonic() - start)


@torch.no_grad()
def held_out_loss(memory: Memory, batches: Sequence[Batch]) -> float:
    """Mean loss of targets over batches."""
    return sum(memory.loss(batch.to(memory.backbone.device)).item() for batch in batches) / len(batches)


class _Run:
    """The optimizer and the files of one run."""

    def __init__(
        self, memory: Memory, recipe: Recipe, out: Path, settled: dict[str, Any], *, resume: bool = True
    ) -> None:
        self.memory, self.recipe, self.out, self.settled = memory, recipe, out, settled
        self.parameters = [parameter for parameter in memory.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise UsageError(f"memory '{memory.name}' has nothing to train: it has no learned parts.")
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=recipe.weight_decay, fused=True)
        self.losses: list[float] = []
        self.checkpoint = checkpoints.newest(out / "checkpoints")
        if self.checkpoint is not None:
            if not resume:
                raise UsageError(f"'{self.checkpoint}' is there already; resume it, or train into another folder.")
            self.losses = checkpoints.restore(self.checkpoint, memory, self.optimizer, settled).losses
        out.mkdir(parents=True, exist_ok=True)
        self._forget_steps_after(len(self.losses))

    def step(self, step: int, batches: Iterable[Batch]) -> Step:
        """Learn from one step's batches."""
        start, recipe, device = time.monotonic(), self.recipe, self.memory.backbone.device
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        rate, loss, tokens = recipe.rate(step), 0.0, 0
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        for batch in (each.to(device) for each in batches):
            value = self.memory.loss(batch, teacher=recipe.teacher, every_segment=recipe.every_segment)
            (value / recipe.accumulate).backward()  # type: ignore[no-untyped-call]
            loss, tokens = loss + value.item() / recipe.accumulate, tokens + batch.tokens
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, recipe.clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            kept = (
                f"'{self.checkpoint}' is the last good checkpoint" if self.checkpoint else "There is no checkpoint yet"
            )
            raise TrainingError(
                f"Step {step + 1}: the loss is {loss}, its gradients' norm {norm}. {kept}; try a lower learning rate."
            )
        self.optimizer.step()
        self.losses.append(loss)
        return Step(step + 1, loss, rate, norm, tokens, time.monotonic() - start)

    def note(self, taken: Step) -> None:
        """Add a line to the metrics."""
        line = json.dumps({name: value for name, value in vars(taken).items() if value is not None})
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self) -> None:
        """Make a checkpoint of where the run is."""
        reached = Progress(len(self.losses), self.settled, _versions(), self.losses)
        self.checkpoint = checkpoints.save(self.out / "checkpoints", self.memory, self.optimizer, reached)

    def finish(self) -> None:
        """Write the memory as users load it."""
        self.memory.save_pretrained(self.out)
        text = json.dumps({**self.settled, "versions": _versions()}, indent=2)
        (self.out / "recipe.json").write_text(text + "\n", encoding="utf-8")

    @property
    def _metrics(self) -> Path:
        return self.out / "metrics.jsonl"

    def _forget_steps_after(self, step: int) -> None:
        """Drop the lines of steps that will be taken again; a kill may have left half a line."""
        lines = self._metrics.read_text(encoding="utf-8").splitlines() if self._metrics.exists() else []
        self._metrics.write_text("".join(f"{line}\n" for line in lines[:step]), encoding="utf-8")


def _ahead(batches: Callable[[int], Batch], numbers: range) -> Iterator[Batch]:
    """The batches of ``numbers``, each made while the one before it is learned from."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        making: deque[Future[Batch]] = deque()
        for number in numbers:
            making.append(pool.submit(batches, number))
            if len(making) > 1:
                yield making.popleft().result()
        yield from (last.result() for last in making)


@contextmanager
def _training(memory: Memory) -> Iterator[None]:
    """Inside: writing builds graphs. After: it does not."""
    memory.train()
    try:
        yield
    finally:
        memory.train(False)


def _settled(memory: Memory, recipe: Recipe, made_of: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides a run, as JSON gives it back."""
    which = {"mechanism": memory.name, "options": memory.options(), "backbone": memory.backbone.fingerprint}
    which["start"] = memory.fingerprint
    settled: dict[str, Any] = json.loads(json.dumps({**which, **asdict(recipe), **made_of}))
    return settled


def _versions() -> dict[str, str]:
    found = {}
    for package in ("byheart", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "run from its source"
    return found
