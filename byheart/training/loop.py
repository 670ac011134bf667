"""The one training loop: a memory's learned parts by AdamW, the model frozen; every method differs by its ``loss``.

A run is decided by its recipe and its batches, which are a function of their number. So a run that was killed goes on
from its last checkpoint and ends with the very losses of an unbroken one. Several processes, started by ``accelerate
launch`` or ``torchrun``, each take every so-manieth batch of a step, and average their gradients; the first one alone
writes. What a batch is made of is not known here.

    out/metrics.jsonl       a line a step
    out/checkpoints/        the newest, see ``checkpoints``
    out/method.safetensors, method.json, recipe.json    at the end: the memory, and all that decided it;
                            beside them what ``Method.export`` writes
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from byheart.errors import TrainingError, UnknownNameError, UsageError, require_positive
from byheart.protocol.checkpoint import save_pretrained
from byheart.protocol.episode import Batch, Episode
from byheart.protocol.method import Method
from byheart.training import checkpoints, trackers
from byheart.training.batches import _batches, _fitted, _source
from byheart.training.checkpoints import Progress
from byheart.training.distributed import Processes
from byheart.training.recipe import _TOO_LONG, Recipe

__all__ = ["Episode", "Recipe", "Step", "TrainResult", "train"]


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
    """A trained memory of so many learned ``parameters`` in the folder ``path``; ``losses`` has one number a step."""

    path: str
    losses: list[float]
    held_out: float | None
    tokens: int
    seconds: float
    parameters: int


def train(
    method: Method,
    episodes: Callable[[int], Batch] | Sequence[Episode],
    recipe: Recipe,
    *,
    out: str | Path,
    batch: int = 16,
    packed: int = 1,
    made_of: Mapping[str, Any] | None = None,
    held_out: Sequence[Batch | Episode] = (),
    evaluate_every: int = 0,
    save_every: int = 100,
    resume: bool = True,
    track: str = "none",
    progress: Callable[[Step], None] | None = None,
) -> TrainResult:
    """Train ``memory`` and save it into ``out``.

    Args:
        episodes: to be taken in an order drawn anew each time through, ``batch`` at once; or what gives the batch of a
            number from 0 on, the same whenever it is asked.
        packed: batches of given episodes that are drawn together and dealt by length, so that less is padding.
        made_of: what decides the batches, in types that JSON has; kept, and compared when a run goes on.
        held_out: batches or episodes to measure every ``evaluate_every`` steps (0: never) and at the end.
        resume: go on from the checkpoint in ``out``, if there is one.
        track: where to send the numbers of every step too; a name in ``trackers.TRACKERS``.
        progress: called after each step, in the first process alone.

    Raises TrainingError at a loss that is no number or where ``out`` cannot be written, StateMismatchError for another
    run's checkpoint, UsageError.
    """
    require_positive(
        steps=recipe.steps, learning_rate=recipe.learning_rate, accumulate=recipe.accumulate, clip=recipe.clip
    )
    require_positive(save_every=save_every, batch=batch, packed=packed)
    if recipe.too_long not in _TOO_LONG:
        raise UnknownNameError("value of too_long", recipe.too_long, _TOO_LONG)
    trackers.require(track)
    batches, own = _source(episodes, batch, packed, recipe.seed)
    run = _Run(method, recipe, Path(out), {**own, **(made_of or {})}, resume=resume)
    unseen = [run.fitted(each) for each in _batches(held_out, batch)]
    start, tokens, held = time.monotonic(), 0, None
    with torch.random.fork_rng(), _training(method), run.noted(track) as note:
        made = run.ahead(batches)
        for step in range(len(run.losses), recipe.steps):
            taken = run.step(step, islice(made, recipe.accumulate))
            number = step + 1
            if unseen and (number == recipe.steps or (evaluate_every and number % evaluate_every == 0)):
                held = run.measure(unseen)
                taken = replace(taken, held_out=held)
            note(taken)
            if number % save_every == 0 or number == recipe.steps:
                run.save()
            tokens += taken.tokens
            if progress is not None and run.processes.first:
                progress(taken)
    run.finish()
    return TrainResult(str(out), run.losses, held, tokens, time.monotonic() - start, run.size)


class _Run:
    """The optimizer and the files of one run."""

    def __init__(
        self, method: Method, recipe: Recipe, out: Path, made_of: Mapping[str, Any], *, resume: bool = True
    ) -> None:
        self.method, self.recipe, self.out = method, recipe, out
        self.parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise UsageError(
                f"memory '{method.name}' has nothing to train: it has no learned parts. "
                "latent-pool, compressed-kv and adapter have some."
            )
        self.processes = Processes(method.backbone.device.type)
        self.processes.agree(method)
        self.settled = _settled(method, recipe, made_of, self.processes.count)
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=recipe.weight_decay, fused=True)
        self.losses: list[float] = []
        found = checkpoints.newest(out / "checkpoints")
        if found is not None:
            if not resume:
                raise UsageError(f"'{found}' is there already; resume it, or train into another folder.")
            missing = {"processes": 1, **asdict(Recipe(steps=recipe.steps))}
            self.losses = checkpoints.restore(found, method, self.optimizer, self.settled, missing=missing).losses
        if self.processes.total(len(self.losses)) != [len(self.losses) * self.processes.count]:
            raise UsageError(f"'{out}' holds {len(self.losses)} steps for this process, others for another: share it.")
        if self.processes.first:
            out.mkdir(parents=True, exist_ok=True)
            self._forget_steps_after(len(self.losses))

    @property
    def size(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters)

    def fitted(self, batch: Batch) -> Batch:
        """A batch that the model has positions for, see ``Recipe``."""
        return _fitted(batch, self.method.backbone.positions, cut=self.recipe.too_long == "cut")

    def ahead(self, batches: Callable[[int], Batch]) -> Iterator[Batch]:
        """This process's batches of all steps to go, each made while the one before it is learned from."""
        count, index = self.processes.count, self.processes.index
        each = self.recipe.accumulate * count
        numbers = range(len(self.losses) * each + index, self.recipe.steps * each, count)
        with ThreadPoolExecutor(max_workers=1) as pool:
            making: deque[Future[Batch]] = deque()
            for number in numbers:
                making.append(pool.submit(lambda n: self.fitted(batches(n)), number))
                if len(making) > 1:
                    yield making.popleft().result()
            yield from (last.result() for last in making)

    def step(self, step: int, batches: Iterable[Batch]) -> Step:
        """Learn from one step's batches."""
        start, recipe, device = time.monotonic(), self.recipe, self.method.backbone.device
        torch.manual_seed(recipe.seed * 1_000_003 + step + self.processes.index * 1_000_000_007)
        rate, loss, tokens = recipe.rate(step), 0.0, 0
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        for batch in (each.to(device) for each in batches):
            value = self.method.loss(
                batch,
                teacher=recipe.teacher,
                every_segment=recipe.every_segment,
                checkpoint_writes=recipe.checkpoint_writes,
            )
            (value / recipe.accumulate).backward()  # type: ignore[no-untyped-call]
            loss, tokens = loss + value.item() / recipe.accumulate, tokens + batch.tokens
        self.processes.average(self.parameters)
        losses, read = self.processes.total(loss, tokens)
        loss, tokens = losses / self.processes.count, int(read)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, recipe.clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"Step {step + 1}: the loss is {loss}, its gradients' norm {norm}. {self._kept}; "
                "try a lower learning rate."
            )
        self.optimizer.step()
        self.losses.append(loss)
        return Step(step + 1, loss, rate, norm, tokens, time.monotonic() - start)

    @torch.no_grad()
    def measure(self, batches: Sequence[Batch]) -> float:
        """Mean loss of the targets over held-out batches."""
        mine = batches[self.processes.index :: self.processes.count]
        losses = (self.method.loss(batch.to(self.method.backbone.device)).item() for batch in mine)
        return self.processes.total(sum(losses))[0] / len(batches)

    @contextmanager
    def noted(self, track: str) -> Iterator[Callable[[Step], None]]:
        """Inside: what is called with every step, for the metrics and the tracker. After: both are closed."""
        if not self.processes.first:
            yield lambda taken: None
            return
        with trackers.tracking(track, self.out, self.settled, done=len(self.losses)) as tell:

            def note(taken: Step) -> None:
                numbers = {name: value for name, value in vars(taken).items() if value is not None}
                with self._writing(), self._metrics.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(numbers) + "\n")
                tell(taken.step, {**numbers, "tokens_per_second": taken.tokens / taken.seconds})

            yield note

    def save(self) -> None:
        """Make a checkpoint of where the run is."""
        if self.processes.first:
            reached = Progress(len(self.losses), self.settled, checkpoints.versions(), self.losses)
            with self._writing():
                checkpoints.save(self.out / "checkpoints", self.method, self.optimizer, reached)

    def finish(self) -> None:
        """Write the memory as users load it."""
        if self.processes.first:
            told = {**self.settled, "parameters": self.size, "versions": checkpoints.versions()}
            text = json.dumps(told, indent=2)
            with self._writing():
                save_pretrained(self.method, self.out)
                self.method.export(self.out)
                (self.out / "recipe.json").write_text(text + "\n", encoding="utf-8")
        self.processes.wait()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside: files are written; where they cannot be, that is a TrainingError which says what is kept."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"Step {len(self.losses)} could not be written into '{self.out}': {error}. {self._kept}; "
                "make room, then start again: the run goes on from there."
            ) from error

    @property
    def _kept(self) -> str:
        found = checkpoints.newest(self.out / "checkpoints")
        return f"'{found}' is the last good checkpoint" if found else "There is no checkpoint yet"

    @property
    def _metrics(self) -> Path:
        return self.out / "metrics.jsonl"

    def _forget_steps_after(self, step: int) -> None:
        """Drop the lines of steps that will be taken again; a kill may have left half a line."""
        lines = self._metrics.read_text(encoding="utf-8").splitlines() if self._metrics.exists() else []
        self._metrics.write_text("".join(f"{line}\n" for line in lines[:step]), encoding="utf-8")


@contextmanager
def _training(method: Method) -> Iterator[None]:
    """Inside: writing builds graphs. After: it does not."""
    method.train()
    try:
        yield
    finally:
        method.train(False)


def _settled(method: Method, recipe: Recipe, made_of: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """All that decides a run, as JSON gives it back."""
    which = {"method": method.name, "options": method.options(), "backbone": method.backbone.fingerprint}
    which["start"] = method.fingerprint
    together = {"processes": processes} if processes > 1 else {}
    settled: dict[str, Any] = json.loads(json.dumps({**which, **asdict(recipe), **together, **made_of}))
    return settled
