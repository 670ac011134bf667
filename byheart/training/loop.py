"""The one training loop: a method's learned parts by AdamW, the model frozen; every method differs by its ``loss``.

A run is decided by its recipe and its batches, which are a function of their number. So a run that was killed resumes
from its last checkpoint and ends with the very losses of an unbroken one. Of several processes, started by ``accelerate
launch`` or ``torchrun``, process i of n takes every n-th batch, and all average their gradients; the first one alone
writes. What a batch is made of is not known here.

    out/metrics.jsonl       a line per step
    out/checkpoints/        the newest, see ``checkpoints``
    out/method.safetensors, method.json, recipe.json    at the end: the method, and all that decided it;
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
from byheart.provenance import versions
from byheart.training import checkpoints, trackers
from byheart.training.batches import collate_all, fit_positions, open_batches, write_others
from byheart.training.checkpoints import Progress
from byheart.training.distributed import Processes
from byheart.training.recipe import SCHEDULES, TOO_LONG, Recipe
from byheart.training.revisits import Revisits
from byheart.training.settings import flatten


@dataclass(frozen=True)
class Step:
    """One step as it went.

    ``norm`` is the gradients' before clipping, ``held_out`` the loss on held-out batches, and ``held_out_later`` that
    after others of their texts were written too: what a memory keeps of a text is the nearer to the first.
    """

    step: int
    loss: float
    learning_rate: float
    norm: float
    tokens: int
    seconds: float
    held_out: float | None = None
    held_out_later: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """A trained method of so many learned ``parameters`` in the folder ``path``; ``losses`` has a number per step."""

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
    retention: int = 0,
    resume: bool = True,
    track: str = "none",
    progress: Callable[[Step], None] | None = None,
) -> TrainResult:
    """Train ``method`` and save its learned parts into ``out``.

    Args:
        episodes: taken ``batch`` at once in an order drawn anew for each pass; or a function that gives the batch of a
            number from 0 on, the same whenever it is called.
        packed: batches of given episodes that are drawn together and dealt by length, so that less is padding.
        made_of: what decides the batches, in types that JSON has; kept, and compared when a run resumes.
        held_out: batches or episodes to measure every ``evaluate_every`` steps (0: never) and at the end.
        retention: of how many other held-out batches the texts are also written, before their targets are predicted
            once more.
        resume: continue from the checkpoint in ``out``, if there is one.
        track: where to send the numbers of every step too; a name in ``trackers.TRACKERS``.
        progress: called after each step, in the first process alone.

    Raises TrainingError at a loss that is no number or where ``out`` cannot be written, StateMismatchError for another
    run's checkpoint, UsageError.
    """
    require_positive(
        steps=recipe.steps, learning_rate=recipe.learning_rate, accumulate=recipe.accumulate, clip=recipe.clip
    )
    require_positive(save_every=save_every, batch=batch, packed=packed)
    if recipe.too_long not in TOO_LONG:
        raise UnknownNameError("value of too_long", recipe.too_long, TOO_LONG)
    if recipe.revisit and not recipe.objective.carried:
        raise UsageError("revisit asks a pool that is carried; give carried too, or leave revisit out.")
    if recipe.schedule not in SCHEDULES:
        raise UnknownNameError("value of schedule", recipe.schedule, SCHEDULES)
    trackers.require(track)
    batches, contents = open_batches(episodes, batch, packed, recipe.seed)
    run = _Run(method, recipe, Path(out), {**contents, **(made_of or {})}, resume=resume)
    if recipe.revisit:
        batches = Revisits(batches, recipe.revisit, recipe.seed, processes=run.processes.count)
    unseen = [run.fit(example) for example in collate_all(held_out, batch)]
    later = write_others(unseen, retention) if unseen and retention else []
    start, tokens, held_out_loss = time.monotonic(), 0, None
    with torch.random.fork_rng(), _training(method), run.recording(track) as record:
        prepared = run.prepare(batches)
        for index in range(len(run.losses), recipe.steps):
            step = run.take_step(index, islice(prepared, recipe.accumulate))
            if unseen and (step.step == recipe.steps or (evaluate_every and step.step % evaluate_every == 0)):
                held_out_loss = run.measure(unseen)
                step = replace(step, held_out=held_out_loss, held_out_later=run.measure(later) if later else None)
            record(step)
            if step.step % save_every == 0 or step.step == recipe.steps:
                run.save()
            tokens += step.tokens
            if progress is not None and run.processes.first:
                progress(step)
    run.finish()
    return TrainResult(str(out), run.losses, held_out_loss, tokens, time.monotonic() - start, run.size)


class _Run:
    """The optimizer and the files of one run."""

    def __init__(
        self, method: Method, recipe: Recipe, out: Path, made_of: Mapping[str, Any], *, resume: bool = True
    ) -> None:
        self.method, self.recipe, self.out, self._metrics = method, recipe, out, out / "metrics.jsonl"
        self.parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise UsageError(
                f"method '{method.name}' has nothing to train: it has no learned parts. "
                "latent-pool, compressed-kv and adapter have some."
            )
        # How many numbers are learned.
        self.size = sum(parameter.numel() for parameter in self.parameters)
        self.processes = Processes(method.backbone.device.type)
        self.processes.agree(method)
        self.run_config = _describe_run(method, recipe, made_of, self.processes.count)
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=recipe.weight_decay, fused=True)
        self.losses: list[float] = []
        found = checkpoints.newest(out / "checkpoints")
        if found is not None:
            if not resume:
                raise UsageError(f"'{found}' is there already; resume it, or train into another folder.")
            missing = {"processes": 1, **flatten(Recipe(steps=recipe.steps))}
            self.losses = checkpoints.restore(found, method, self.optimizer, self.run_config, missing=missing).losses
        if self.processes.total(len(self.losses)) != [len(self.losses) * self.processes.count]:
            raise UsageError(f"'{out}' holds {len(self.losses)} steps for this process, others for another: share it.")
        if self.processes.first:
            out.mkdir(parents=True, exist_ok=True)
            self._drop_steps_after(len(self.losses))

    def fit(self, batch: Batch) -> Batch:
        """A batch that the model has positions for, see ``Recipe``."""
        return fit_positions(batch, self.method.backbone.positions, cut=self.recipe.too_long == "cut")

    def prepare(self, batches: Callable[[int], Batch]) -> Iterator[Batch]:
        """This process's batches of all steps to come, each made while the one before it is learned from."""
        count, index = self.processes.count, self.processes.index
        per_step = self.recipe.accumulate * count
        numbers = range(len(self.losses) * per_step + index, self.recipe.steps * per_step, count)
        with ThreadPoolExecutor(max_workers=1) as pool:
            pending: deque[Future[Batch]] = deque()
            for number in numbers:
                pending.append(pool.submit(lambda n: self.fit(batches(n)), number))
                if len(pending) > 1:
                    yield pending.popleft().result()
            yield from (last.result() for last in pending)

    def take_step(self, step: int, batches: Iterable[Batch]) -> Step:
        """Learn from one step's batches."""
        start, recipe, device = time.monotonic(), self.recipe, self.method.backbone.device
        torch.manual_seed(recipe.seed * 1_000_003 + step + self.processes.index * 1_000_000_007)
        rate, loss, tokens = recipe.rate(step), 0.0, 0
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            value = self.method.loss(batch.to(device), recipe.objective)
            (value / recipe.accumulate).backward()  # type: ignore[no-untyped-call]
            loss, tokens = loss + value.item() / recipe.accumulate, tokens + batch.tokens
        self.processes.average(self.parameters)
        total_loss, total_tokens = self.processes.total(loss, tokens)
        loss, tokens = total_loss / self.processes.count, int(total_tokens)
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
    def recording(self, track: str) -> Iterator[Callable[[Step], None]]:
        """Inside: what is called with every step, for the metrics and the tracker. After: both are closed."""
        if not self.processes.first:
            yield lambda step: None
            return
        with trackers.tracking(track, self.out, self.run_config, done=len(self.losses)) as send:

            def record(step: Step) -> None:
                numbers = {name: value for name, value in asdict(step).items() if value is not None}
                with self._writing(), self._metrics.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(numbers) + "\n")
                send(step.step, {**numbers, "tokens_per_second": step.tokens / step.seconds})

            yield record

    def save(self) -> None:
        """Make a checkpoint of where the run is."""
        if self.processes.first:
            progress = Progress(len(self.losses), self.run_config, versions(), self.losses)
            with self._writing():
                checkpoints.save(self.out / "checkpoints", self.method, self.optimizer, progress)

    def finish(self) -> None:
        """Write the learned parts as users load them."""
        if self.processes.first:
            record = {**self.run_config, "parameters": self.size, "versions": versions()}
            text = json.dumps(record, indent=2)
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
                "make room, then start again: the run resumes from there."
            ) from error

    @property
    def _kept(self) -> str:
        found = checkpoints.newest(self.out / "checkpoints")
        return f"'{found}' is the last good checkpoint" if found else "There is no checkpoint yet"

    def _drop_steps_after(self, step: int) -> None:
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


def _describe_run(method: Method, recipe: Recipe, made_of: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """All that decides a run, as JSON gives it back."""
    start = {"method": method.name, "options": method.options(), "backbone": method.backbone.fingerprint}
    start["start"] = method.fingerprint
    shared = {"processes": processes} if processes > 1 else {}
    run_config: dict[str, Any] = json.loads(json.dumps({**start, **flatten(recipe), **shared, **made_of}))
    return run_config
