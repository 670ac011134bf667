"""A training run as people write it down: settings from a recipe file, changed by flags, and the run that they mean.

Default < file < flag. A recipe file is TOML whose keys are the fields of ``Plan``; paths in it, as in flags, are seen
from the current folder.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from byheart.data.mixture import SUPERVISED, Mixture, Weighted, prompted, prompts_of
from byheart.errors import InputError, UnknownNameError, UsageError
from byheart.model.loading import DEFAULT
from byheart.protocol.episode import Batch, Episode
from byheart.session.opening import load
from byheart.session.session import Session
from byheart.training.checkpoints import newest
from byheart.training.distributed import Processes
from byheart.training.loop import Step, TrainResult, train
from byheart.training.recipe import Recipe
from byheart.training.trackers import require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_HELD_OUT_BATCHES = 8
_SHAPES = ("segments", "segment_tokens", "target_tokens", "gap", "recall", "batch", "batch_tokens", "packed")
_MEANT = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a table"}


@dataclass(frozen=True)
class TrainingConfig:
    """What to train, on what, and how; ``data`` and ``held_out`` are ``PATH`` or ``PATH:weight``.

    With ``prompts`` nothing is written: each record is asked by its data set's prompt, a weight is the share of records
    taken, and the ``label`` or ``all`` tokens are supervised. ``epochs`` times through them then stand for ``steps``.
    """

    method: str = "compressed-kv"
    options: dict[str, Any] = field(default_factory=dict)
    model: str = DEFAULT
    dtype: str = "auto"
    device: str = "auto"
    data: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    prompts: str = ""
    epochs: int = 0
    segments: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    segment_tokens: int = 64
    target_tokens: int = 64
    gap: int = 0
    recall: float = 0.0
    batch: int = 16
    batch_tokens: int = 0
    packed: int = 1
    steps: int = 1000
    learning_rate: float = 3e-4
    warmup: float = 0.03
    clip: float = 1.0
    weight_decay: float = 0.0
    accumulate: int = 1
    teacher: float = 0.0
    every_segment: float = 0.0
    checkpoint_writes: bool = False
    too_long: str = "refuse"
    seed: int = 0
    save_every: int = 100
    evaluate_every: int = 0
    track: str = "none"

    @classmethod
    def of(cls, file: str | Path | None, **flags: Any) -> TrainingConfig:
        """Settings of a recipe file, changed by flags; a flag of None is not given. Raises InputError, UsageError."""
        written = _parsed(Path(file)) if file is not None else {}
        given = {name: value for name, value in flags.items() if value is not None}
        if "options" in given:
            given["options"] = {**written.get("options", {}), **given["options"]}
        settled = {**written, **given}
        defaults = asdict(cls())
        for name, value in settled.items():
            if name not in defaults:
                raise UnknownNameError("setting", name, defaults)
            kind = type(defaults[name])
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise UsageError(f"{name} must be {_MEANT[kind]}; it is {value!r}.")
        return cls(**settled)

    def run(
        self,
        out: str | Path,
        *,
        ready: Callable[[int, int], None] = lambda done, total: None,
        progress: Callable[[Step], None] | None = None,
    ) -> TrainResult:
        """Train, going on from what is in ``out``.

        Args:
            ready: called when the model is open and the data are read, with the steps done and the steps in all.
            progress: called after each step.

        Of several processes the first one alone calls them.
        """
        if not self.data:
            raise UsageError("There is nothing to train on: give --data, or data in the recipe.")
        if self.prompts and self.prompts not in SUPERVISED:
            raise UnknownNameError("value of prompts", self.prompts, SUPERVISED)
        if self.epochs and not self.prompts:
            raise UsageError("epochs are passes over prompts: give prompts (label or all) too, or steps instead.")
        require(self.track)
        made = self._asked() if self.prompts else self._written()
        processes = Processes(self.device)
        where: dict[str, Any] = {"dtype": self.dtype, "device": processes.device}
        session = load(self.model, method=self.method, trained=False, **where, **self.options)
        given = made(session)
        steps = self.epochs * math.ceil(given.count / (self.accumulate * processes.count)) or self.steps
        found = newest(Path(out) / "checkpoints")
        if processes.first:
            ready(int(found.name.removeprefix("step-")) if found else 0, steps)
        settings = {each.name: vars(self)[each.name] for each in fields(Recipe)}
        return train(
            session.method,
            given.episodes,
            Recipe(**{**settings, "steps": steps}),
            out=out,
            batch=self.batch,
            packed=self.packed,
            made_of=given.made_of,
            held_out=given.held_out,
            evaluate_every=self.evaluate_every,
            save_every=self.save_every,
            track=self.track,
            progress=progress,
        )

    def _written(self) -> Callable[[Session], _Given]:
        """Read texts to write; what is made of them waits for the session."""
        sources, held = [Weighted.read(each) for each in self.data], [Weighted.read(each) for each in self.held_out]

        def made(session: Session) -> _Given:
            self._require_room(session.backbone.positions)
            unseen = [self._mixture(session, held, self.seed)(n) for n in range(_HELD_OUT_BATCHES)] if held else []
            return _Given(self._mixture(session, sources, self.seed), unseen, self._made_of(session, sources))

        return made

    def _asked(self) -> Callable[[Session], _Given]:
        """Read prompts and labels; what is made of them waits for the session."""
        prompts, held = (prompts_of(each, seed=self.seed) for each in (self.data, self.held_out))

        def made(session: Session) -> _Given:
            episodes, unseen = (prompted(session.encoder, each, supervised=self.prompts) for each in (prompts, held))
            about = {
                "data": [Path(each).name for each in self.data],
                "dtype": session.header.dtype,
                "tokenizer": session.header.tokenizer,
                "prompts": self.prompts,
            }
            return _Given(episodes, unseen, about, math.ceil(len(episodes) / self.batch))

        return made

    def _require_room(self, positions: int) -> None:
        """Refuse what will not fit before the first step, not when such an episode is drawn."""
        longest = max(self.segments, default=0) * self.segment_tokens + self.target_tokens
        if self.too_long == "refuse" and longest > positions:
            raise UsageError(
                f"Episodes of {max(self.segments)} segments of {self.segment_tokens} tokens and a target of "
                f"{self.target_tokens} have {longest} tokens; the model has positions for {positions}. Lower segments, "
                "segment_tokens or target_tokens; or too_long = 'cut' leaves out the oldest text."
            )

    def _mixture(self, session: Session, sources: list[Weighted], seed: int) -> Mixture:
        shapes = {name: vars(self)[name] for name in _SHAPES}
        shapes["distractor_tokens"] = shapes.pop("gap")
        return Mixture(session.encoder, sources, seed=seed, **shapes)

    def _made_of(self, session: Session, sources: list[Weighted]) -> Mapping[str, Any]:
        """What decides the batches and the precision; where data lie does not."""
        return {
            "data": [[Path(each.data.source).name, each.data.digest, each.weight] for each in sources],
            "dtype": session.header.dtype,
            "tokenizer": session.header.tokenizer,
            **{name: vars(self)[name] for name in _SHAPES},
        }


@dataclass(frozen=True)
class _Given:
    """What a run learns from and is measured on, and what decides it; ``count`` batches are each episode once."""

    episodes: Callable[[int], Batch] | Sequence[Episode]
    held_out: Sequence[Batch | Episode]
    made_of: Mapping[str, Any]
    count: int = 0


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"Recipe '{file}' cannot be read: {error}.") from error
