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
from typing import TYPE_CHECKING, Any

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

    With ``prompts`` nothing is written: each record is asked by its data set's prompt, a weight is the share of records
    taken, and the ``label`` or ``all`` tokens are supervised. ``epochs`` times through them then stand for ``steps``.
    """

    data: list[str] = field(
        default_factory=list, metadata={"help": "JSON lines, text, a folder or a hub name.", "metavar": _SOURCE}
    )
    held_out: list[str] = field(default_factory=list, metadata={"help": "Data to measure on.", "metavar": _SOURCE})
    prompts: str = field(
        default="",
        metadata={
            "help": "Ask records by their data set's prompt; supervise the label or all of it.",
            "metavar": "label|all",
        },
    )
    epochs: int = field(default=0, metadata={"help": "Times through the prompts, instead of steps."})


@dataclass(frozen=True)
class Episodes:
    """What an episode looks like, and how episodes become batches; see ``data.mixture.Mixture``."""

    segments: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8],
        metadata={"help": "Segments of an episode, drawn for each batch.", "metavar": "N,N,..."},
    )
    segment_tokens: int = field(default=64, metadata={"help": "Tokens of a segment."})
    target_tokens: int = field(default=64, metadata={"help": "Tokens of the target."})
    gap: int = field(default=0, metadata={"help": "Distractor tokens at the end of the segments, before the target."})
    recall: float = field(
        default=0.0, metadata={"help": "Share of the episodes that ask for a passage by its first words."}
    )
    batch: int = field(default=16, metadata={"help": "Episodes of a batch; with --batch-tokens, at most."})
    batch_tokens: int = field(
        default=0, metadata={"help": "Fill a batch with episodes up to so many tokens; 0 counts episodes."}
    )
    packed: int = field(
        default=1, metadata={"help": "Batches drawn together and dealt by length, so that less is padding."}
    )


@dataclass(frozen=True)
class Saving:
    """What is kept of a run while it goes, and who is told."""

    save_every: int = field(default=100, metadata={"help": "Steps between checkpoints."})
    evaluate_every: int = field(
        default=0, metadata={"help": "Steps between measurements on held-out data; 0 measures at the end alone."}
    )
    track: str = field(
        default="none",
        metadata={"help": "Send the numbers of every step there too.", "metavar": "none|tensorboard|trackio|wandb"},
    )


@dataclass(frozen=True)
class TrainingConfig:
    """What to train, on what, and how; its settings by flat names come through ``of``."""

    method: str = field(default="compressed-kv", metadata={"help": "Method, or a folder with a trained one."})
    options: dict[str, Any] = field(default_factory=dict, metadata={"help": "Options of the method."})
    model: str = field(default="smollm2", metadata={"help": "Alias, hub id, folder or .gguf file."})
    dtype: str = field(default="auto", metadata={"help": "auto, bfloat16, float32 or 4bit."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N."})
    sources: Sources = field(default_factory=Sources, metadata={"panel": _READ})
    episodes: Episodes = field(default_factory=Episodes, metadata={"panel": _READ})
    optimisation: Recipe = field(default_factory=Recipe, metadata={"panel": _LEARNED})
    saving: Saving = field(default_factory=Saving, metadata={"panel": _RUN})

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
