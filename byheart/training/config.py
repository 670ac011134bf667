"""A training run as people write it down: settings from a recipe file, changed by flags.

Default < file < flag. A recipe file is TOML whose keys are the names of the settings, at its top or in a table of
their section (``[sources]``, ``[episodes]``, ``[optimisation]``, ``[objective]``, ``[saving]``). Paths in it, as in
flags, are relative to the current folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from byheart.errors import InputError
from byheart.training.recipe import Recipe
from byheart.training.settings import build_config

if TYPE_CHECKING:
    from byheart.training.loop import Step, TrainResult

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SOURCE = "PATH[:WEIGHT]"
_READ, _LEARNED, _RUN = "What is read", "How it is learned", "The run"


@dataclass(frozen=True)
class Sources:
    """Where texts come from.

    With ``stream`` data may be larger than the memory of the machine, see ``data.streaming``.
    With ``prompts`` nothing is written: each record is asked by its data set's prompt, a weight is the share of records
    taken, and the ``label`` or ``all`` tokens are supervised. ``epochs`` times through them then stand for ``steps``,
    ``most_records`` is taken of each source before the share, and ``pack_tokens`` fills rows of so many tokens.
    """

    data: Annotated[list[str], "JSON lines, text, a folder or a hub name (not run from the hub yet).", _SOURCE] = field(
        default_factory=list
    )
    held_out: Annotated[list[str], "Data to measure on.", _SOURCE] = field(default_factory=list)
    stream: Annotated[int, "Hold so many records of each source at once and read on; 0 holds all."] = 0
    prompts: Annotated[str, "Ask records by their data set's prompt; supervise label or all.", "label|all"] = ""
    epochs: Annotated[int, "Times through the prompts, instead of steps."] = 0
    most_records: Annotated[int, "The first so many records of each source of prompts; 0 is all."] = 0
    pack_tokens: Annotated[int, "Cut prompts, one after another, into rows of so many tokens; 0 asks each alone."] = 0


@dataclass(frozen=True)
class Episodes:
    """What an episode looks like, and how episodes become batches; see ``data.mixture.Mixture``."""

    segments: Annotated[list[int], "Segments of an episode, drawn for each batch.", "N,N,..."] = field(
        default_factory=lambda: [1, 2, 4, 8]
    )
    segment_tokens: Annotated[int, "Tokens of a segment."] = 64
    target_tokens: Annotated[int, "Tokens of the target."] = 64
    gap: Annotated[int, "Distractor tokens at the end of the segments, before the target."] = 0
    recall: Annotated[float, "Share of the episodes that ask for a passage by its first words."] = 0.0
    batch: Annotated[int, "Episodes of a batch; with --batch-tokens, at most."] = 16
    batch_tokens: Annotated[int, "Fill a batch with episodes up to so many tokens; 0 counts episodes."] = 0
    packed: Annotated[int, "Batches drawn together and dealt by length, so that less is padding."] = 1


@dataclass(frozen=True)
class Saving:
    """What is kept of a run while it lasts, and where its numbers are sent."""

    save_every: Annotated[int, "Steps between checkpoints."] = 100
    evaluate_every: Annotated[int, "Steps between measurements on held-out data; 0 measures at the end alone."] = 0
    retention: Annotated[
        int, "Other held-out texts that are written before held-out targets are predicted once more; 0 is none."
    ] = 0
    track: Annotated[
        str,
        "Where to send the numbers of every step too (not run against the services yet).",
        "none|tensorboard|trackio|wandb",
    ] = "none"


@dataclass(frozen=True)
class TrainingConfig:
    """What to train, on what, and how; its settings by flat names come through ``of``."""

    method: Annotated[str, "Method, or a folder with a trained one."] = "compressed-kv"
    options: Annotated[dict[str, Any], "Options of the method."] = field(default_factory=dict)
    model: Annotated[str, "Alias, hub id, folder or .gguf file."] = "smollm2"
    dtype: Annotated[str, "auto, bfloat16, float32 or 4bit (4bit: not run yet)."] = "auto"
    device: Annotated[str, "auto, cpu, cuda, cuda:N, or offload where it does not fit (not run on a GPU)."] = "auto"
    sources: Annotated[Sources, _READ] = field(default_factory=Sources)
    episodes: Annotated[Episodes, _READ] = field(default_factory=Episodes)
    optimisation: Annotated[Recipe, _LEARNED] = field(default_factory=Recipe)
    saving: Annotated[Saving, _RUN] = field(default_factory=Saving)

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
