"""Sending the numbers of a training run to trackio, Weights & Biases or TensorBoard, when asked.

Each is a package of its own, imported when it is used; a resumed run continues where its curves ended. Nothing
here knows what the numbers mean.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from byheart.errors import UnknownNameError, UsageError

TRACKERS = ("none", "tensorboard", "trackio", "wandb")
Send: TypeAlias = Callable[[int, Mapping[str, float]], None]
_PROJECT = "byheart"


def require(name: str) -> None:
    """Raise UnknownNameError for a tracker that is not known, UsageError for one that is not installed."""
    if name not in TRACKERS:
        raise UnknownNameError("tracker", name, TRACKERS)
    if name == "none":
        return
    found = importlib.util.find_spec(name)
    # A folder of that name, such as the one that Weights & Biases leaves, has no origin.
    if found is None or found.origin is None:
        raise UsageError(f"Tracker '{name}' is not installed: pip install {name}")


def tracking(name: str, out: Path, settings: Mapping[str, Any], *, done: int = 0) -> AbstractContextManager[Send]:
    """Before: nothing is open. Inside: a function that takes a step and its numbers. After: the tracker is closed.

    Args:
        out: the run's folder; TensorBoard's files go into it, and the others call the run by its name.
        settings: what decided the run, shown beside its numbers.
        done: steps that were sent before.
    """
    require(name)
    if name == "none":
        return nullcontext(lambda step, numbers: None)
    return _tensorboard(out, settings, done) if name == "tensorboard" else _hosted(name, out, settings)


@contextmanager
def _tensorboard(out: Path, settings: Mapping[str, Any], done: int) -> Iterator[Send]:
    # What a killed run sent after its last checkpoint is sent again, so it is dropped.
    writer: Any = import_module("torch.utils.tensorboard").SummaryWriter(out / "tensorboard", purge_step=done + 1)
    if not done:
        writer.add_text("recipe", f"```json\n{json.dumps(settings, indent=2)}\n```")

    def send(step: int, numbers: Mapping[str, float]) -> None:
        for key, value in numbers.items():
            writer.add_scalar(key, value, global_step=step)

    try:
        yield send
    finally:
        writer.close()


@contextmanager
def _hosted(name: str, out: Path, settings: Mapping[str, Any]) -> Iterator[Send]:
    """Trackio and Weights & Biases, whose interfaces are alike."""
    run_name = out.resolve().name
    mark = hashlib.sha256(json.dumps([run_name, settings], sort_keys=True).encode()).hexdigest()[:8]
    # Weights & Biases knows a run by its id, trackio by its name.
    which = {"name": run_name, "id": f"{run_name}-{mark}"} if name == "wandb" else {"name": f"{run_name}-{mark}"}
    try:
        run: Any = import_module(name).init(project=_PROJECT, config=dict(settings), resume="allow", **which)
    except Exception as error:
        # Not logged in, no network: each tracker has errors of its own.
        raise UsageError(f"Tracker '{name}' could not be opened: {error}") from error
    try:
        yield lambda step, numbers: run.log(dict(numbers), step=step)
    finally:
        run.finish()
