"""A training run as people write it down: settings from a recipe file, changed by flags.

Default < file < flag. A recipe file is TOML whose keys are the names of the settings, at its top or in a table of
their section (``[sources]``, ``[episodes]``, ``[optimisation]``, ``[objective]``, ``[saving]``). Paths in it, as in
flags, are relative to the current folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byheart.errors import InputError
from byheart.training.recipe import Recipe
from byheart.training.settings import build_config, section, setting

if TYPE_CHECKING:
    from byheart.training.loop import Step, TrainResult

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SOURCE = "PATH[:WEIGHT]"
_READ, _LEARNED, _RUN = "What is read", "What is learned", "The run"


@dataclass(frozen=True)
class Sources:
    """Where texts come from.

    With ``prompts`` nothing is written: each record is asked by its data set's prompt, a weight is the share of records
    taken, and the ``label`` or ``all`` tokens are supervised. ``epochs`` times through them then stand for ``steps``.
    """

    data: list[str] = setting([], "JSON lines, text, a folder or a hub name.", _SOURCE)
    held_out: list[str] = setting([], "Data to measure on.", _SOURCE)
    prompts: str = setting("", "Ask records by their data set's prompt; supervise label or all.", "label|all")
    epochs: int = setting(0, "Times through the prompts, instead of steps.")


@dataclass(frozen=True)
class Episodes:
    """What an episode looks like, and how episodes become batches; see ``data.mixture.Mixture``."""

    segments: list[int] = setting([1, 2, 4, 8], "Segments of an episode, drawn for each batch.", "N,N,...")
    segment_tokens: int = setting(64, "Tokens of a segment.")
    target_tokens: int = setting(64, "Tokens of the target.")
    gap: int = setting(0, "Distractor tokens at the end of the segments, before the target.")
    recall: float = setting(0.0, "Share of the episodes that ask for a passage by its first words.")
    batch: int = setting(16, "Episodes of a batch; with --batch-tokens, at most.")
    batch_tokens: int = setting(0, "Fill a batch with episodes up to so many tokens; 0 counts episodes.")
    packed: int = setting(1, "Batches drawn together and dealt by length, so that less is padding.")


@dataclass(frozen=True)
class Saving:
    """What is kept of a run while it goes, and who is told."""

    save_every: int = setting(100, "Steps between checkpoints.")
    evaluate_every: int = setting(0, "Steps between measurements on held-out data; 0 measures at the end alone.")
    track: str = setting("none", "Send the numbers of every step there too.", "none|tensorboard|trackio|wandb")


@dataclass(frozen=True)
class TrainingConfig:
    """What to train, on what, and how; its settings by flat names come through ``of``."""

    method: str = setting("compressed-kv", "Method, or a folder with a trained one.")
    options: dict[str, Any] = setting({}, "Options of the method.")
    model: str = setting("smollm2", "Alias, hub id, folder or .gguf file.")
    dtype: str = setting("auto", "auto, bfloat16, float32 or 4bit.")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")
    sources: Sources = section(Sources, _READ)
    episodes: Episodes = section(Episodes, _READ)
    optimisation: Recipe = section(Recipe, _LEARNED)
    saving: Saving = section(Saving, _RUN)

    @classmethod
    def of(cls, file: str | Path | None = None, **flags: Any) -> TrainingConfig:
        """Settings of a recipe file, changed by flags; a flag of None is not given.

        Raises InputError for a file that cannot be read, UnknownNameError and UsageError for a setting that cannot be.
        """
        written = _parse(Path(file)) if file is not None else {}
        flags = {name: value for name, value in flags.items() if value is not None}
        if "options" in flags:
            flags["options"] = {**written.get("options", {}), **flags["options"]}
        return build_config(cls, {**written, **flags})

    def run(
        self,
        out: str | Path,
        *,
        ready: Callable[[int, int], None] = lambda done, total: None,
        progress: Callable[[Step], None] | None = None,
    ) -> TrainResult:
        """Train, resuming from what is in ``out``; see ``training.run.run``."""
        # Training needs PyTorch, which the settings do not.
        from byheart.training.run import run

        return run(self, out, ready=ready, progress=progress)


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"Recipe '{file}' cannot be read: {error}.") from error
