"""From a config to a trained method: reads the data, opens the model, and hands both to the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from byheart.data.mixture import SUPERVISED, Mixture, Weighted, pack, prompted, prompts_of
from byheart.data.streaming import StreamedMixture, StreamedSource
from byheart.errors import UnknownNameError, UsageError, require_not_negative
from byheart.protocol.episode import Batch, Episode
from byheart.session.opening import load
from byheart.session.session import Session
from byheart.training.batches import collate_all, fit_positions
from byheart.training.checkpoints import newest
from byheart.training.config import Episodes, TrainingConfig
from byheart.training.distributed import Processes
from byheart.training.loop import Step, TrainResult, train
from byheart.training.trackers import require

_HELD_OUT_BATCHES = 8


@dataclass(frozen=True)
class _Examples:
    """What a run learns from and is measured on, and what decides it; ``count`` batches are each episode once."""

    episodes: Callable[[int], Batch] | Sequence[Episode]
    held_out: Sequence[Batch | Episode]
    made_of: Mapping[str, Any]
    count: int = 0


def run(
    config: TrainingConfig,
    out: str | Path,
    *,
    ready: Callable[[int, int], None] = lambda done, total: None,
    progress: Callable[[Step], None] | None = None,
) -> TrainResult:
    """Train what a config says into ``out``, resuming from what is there.

    Args:
        ready: called when the model is open and the data are read, with the steps done and the steps in all.
        progress: called after each step.

    Of several processes the first one alone calls them. What cannot be is said before the model is opened, as
    UsageError, UnknownNameError or InputError.
    """
    _require_possible(config)
    make_examples = _read_prompts(config) if config.sources.prompts else _read_texts(config)
    processes = Processes(config.device)
    session = load(
        config.model,
        method=config.method,
        trained=False,
        dtype=config.dtype,
        device=processes.device,
        **config.options,
    )
    examples, recipe = make_examples(session), config.optimisation
    passes = config.sources.epochs * math.ceil(examples.count / (recipe.accumulate * processes.count))
    recipe = replace(recipe, steps=passes or recipe.steps)
    checkpoint = newest(Path(out) / "checkpoints")
    if processes.first:
        ready(int(checkpoint.name.removeprefix("step-")) if checkpoint else 0, recipe.steps)
    return train(
        session.method,
        examples.episodes,
        recipe,
        out=out,
        batch=config.episodes.batch,
        packed=config.episodes.packed,
        made_of=examples.made_of,
        held_out=examples.held_out,
        **asdict(config.saving),
        progress=progress,
    )


def measure_held_out(config: TrainingConfig, method: str, count: int = _HELD_OUT_BATCHES) -> list[float]:
    """The loss of a trained method on each of so many held-out batches of a config, in nats per supervised token.

    Args:
        method: a folder with learned parts; the batches depend on the config alone, so that others can be compared.
    """
    make_examples = _read_texts(config, count)
    session = load(config.model, method=method, dtype=config.dtype, device=config.device)
    examples, cut = make_examples(session), config.optimisation.too_long == "cut"
    backbone = session.backbone
    with torch.no_grad():
        fitted = (fit_positions(batch, backbone.positions, cut=cut) for batch in collate_all(examples.held_out, 1))
        return [session.method.loss(batch.to(backbone.device)).item() for batch in fitted]


def _require_possible(config: TrainingConfig) -> None:
    sources = config.sources
    if not sources.data:
        raise UsageError("There is nothing to train on: give --data, or data in the recipe.")
    if sources.prompts and sources.prompts not in SUPERVISED:
        raise UnknownNameError("value of prompts", sources.prompts, SUPERVISED)
    for name in ("epochs", "most_records", "pack_tokens"):
        if getattr(sources, name) and not sources.prompts:
            raise UsageError(f"{name} is for prompts: give prompts (label or all) too, or leave it out.")
    require_not_negative(most_records=sources.most_records)
    if sources.pack_tokens and (sources.prompts != "all" or sources.pack_tokens < 2):
        raise UsageError(
            f"pack_tokens must be 2 or more, with prompts = 'all': a row is learned as a whole. It is "
            f"{sources.pack_tokens}, with prompts = '{sources.prompts}'."
        )
    if sources.stream and sources.prompts:
        raise UsageError("stream is for texts: labelled records are held whole. Leave out stream, or prompts.")
    require(config.saving.track)


def _read_texts(config: TrainingConfig, count: int = _HELD_OUT_BATCHES) -> Callable[[Session], _Examples]:
    """Read texts to write; the examples made of them wait for the session."""
    paths, size = config.sources.data, config.sources.stream
    streamed = [StreamedSource(source, size) for source in paths] if size else []
    sources = [source.window(0) for source in streamed] or [Weighted.read(source) for source in paths]
    held_out = [Weighted.read(source) for source in config.sources.held_out]
    recipe, shape = config.optimisation, asdict(config.episodes)
    drawn = {"distractor_tokens" if name == "gap" else name: value for name, value in shape.items()}

    def make_examples(session: Session) -> _Examples:
        if recipe.too_long == "refuse":
            _require_room(config.episodes, session.backbone.positions)
        drawn["own_start"] = session.method.own_start

        def make(held: Sequence[Weighted]) -> Mixture:
            return Mixture(session.encoder, held, seed=recipe.seed, **drawn)

        mixture = StreamedMixture(make, streamed) if streamed else make(sources)
        unseen = make(held_out) if held_out else None
        part = f" of the first {size}" if size else ""
        data = [[Path(source.data.source).name, source.data.digest + part, source.weight] for source in sources]
        made_of = {**_describe(session, data), **shape, **({"stream": size} if size else {})}
        return _Examples(mixture, [unseen(n) for n in range(count)] if unseen else [], made_of)

    return make_examples


def _read_prompts(config: TrainingConfig) -> Callable[[Session], _Examples]:
    """Read prompts and labels; the examples made of them wait for the session."""
    sources, seed = config.sources, config.optimisation.seed
    prompts, held_out = (
        prompts_of(paths, seed=seed, most=sources.most_records) for paths in (sources.data, sources.held_out)
    )

    def make_examples(session: Session) -> _Examples:
        episodes, unseen = (
            prompted(session.encoder, asked, supervised=sources.prompts) for asked in (prompts, held_out)
        )
        made_of = {**_describe(session, [Path(path).name for path in sources.data]), "prompts": sources.prompts}
        if sources.pack_tokens:
            episodes = pack(episodes, sources.pack_tokens)
            made_of["pack_tokens"] = sources.pack_tokens
        return _Examples(episodes, unseen, made_of, math.ceil(len(episodes) / config.episodes.batch))

    return make_examples


def _describe(session: Session, data: list[Any]) -> dict[str, Any]:
    """What decides the batches and the precision; where data lie does not."""
    return {"data": data, "dtype": session.header.dtype, "tokenizer": session.header.tokenizer}


def _require_room(shape: Episodes, positions: int) -> None:
    """Refuse what will not fit before the first step, not when such an episode is drawn."""
    longest = max(shape.segments, default=0) * shape.segment_tokens + shape.target_tokens
    if longest > positions:
        raise UsageError(
            f"Episodes of {max(shape.segments)} segments of {shape.segment_tokens} tokens and a target of "
            f"{shape.target_tokens} have {longest} tokens; the model has positions for {positions}. Lower segments, "
            "segment_tokens or target_tokens; or too_long = 'cut' leaves out the oldest text."
        )
