"""Where training stands, on disk: safetensors and JSON, written whole or not at all.

A checkpoint is a folder ``step-N`` that appears by one rename, after everything in it reached the disk; older ones go
after that. So whatever kills a run, the newest folder is whole. It holds the learned parts as
``save_pretrained`` writes them, and can be used as any trained folder.

    out/checkpoints/step-200/
        method.safetensors, method.json     the learned parts
        optimizer.safetensors               step.NAME, exp_avg.NAME, exp_avg_sq.NAME
        trainer.json                        step, recipe, versions, losses so far
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from byheart.errors import CheckpointError, StateMismatchError
from byheart.files import sync
from byheart.methods import defaults
from byheart.protocol.checkpoint import load_pretrained, save_pretrained
from byheart.protocol.method import Method

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """How far a run has come: ``losses`` has a number per step."""

    step: int
    recipe: dict[str, Any]
    versions: dict[str, str]
    losses: list[float]


def save(folder: Path, method: Method, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
    """Write a checkpoint into ``folder``, then drop the older ones; gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    target = folder / f"step-{progress.step}"
    try:
        save_pretrained(method, scratch)
        save_file(_moments(method, optimizer), scratch / "optimizer.safetensors")
        (scratch / "trainer.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
        for file in [*scratch.iterdir(), scratch]:
            sync(file)
        scratch.rename(target)
        sync(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    return target


def newest(folder: Path) -> Path | None:
    """The last whole checkpoint, if there is one."""
    steps = [int(found.name.removeprefix("step-")) for found in folder.glob("step-*")]
    return folder / f"step-{max(steps)}" if steps else None


def restore(
    path: Path,
    method: Method,
    optimizer: torch.optim.Optimizer,
    recipe: Mapping[str, Any],
    *,
    missing: Mapping[str, Any] | None = None,
) -> Progress:
    """Put a checkpoint back. Raises StateMismatchError where it is another recipe's, CheckpointError where damaged.

    Args:
        missing: the value of a setting that a recipe lacks, perhaps because it is older than the setting.
    """
    try:
        progress = Progress(**json.loads((path / "trainer.json").read_text(encoding="utf-8")))
        moments = load_file(path / "optimizer.safetensors", device=str(method.backbone.device))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}); delete it to start again.") from error
    # An option without a default is recorded always.
    options = json.loads(json.dumps(defaults(type(method)), default=str))
    known = {**(missing or {}), **_flatten({"options": options})}
    theirs, ours = ({**known, **_flatten(record)} for record in (progress.recipe, recipe))
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            raise StateMismatchError(
                f"'{path}' was trained with {key} {theirs.get(key)}; this run has {ours.get(key)}. "
                "Train into another folder, or delete this one's checkpoints."
            )
    load_pretrained(method, path)
    for name, parameter in method.named_parameters():
        if f"step.{name}" in moments:
            optimizer.state[parameter] = {part: moments[f"{part}.{name}"] for part in _MOMENTS}
    return progress


def _flatten(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the method's options as settings of their own, ``options.rank``."""
    options = {f"options.{name}": value for name, value in recipe.get("options", {}).items()}
    return {**{name: value for name, value in recipe.items() if name != "options"}, **options}


def _moments(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": optimizer.state[parameter][part].cpu().contiguous()
        for name, parameter in method.named_parameters()
        for part in _MOMENTS
        if part in optimizer.state[parameter]
    }
