"""The gap window by window: each text is written alone, and its target predicted after it alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol.episode import Episode
from byheart.session.opening import load
from byheart.session.session import Session


@torch.no_grad()
def summed_loss(backbone: Backbone, text: Sequence[int], target: Sequence[int], start: int) -> float:
    """The loss of a target's tokens from ``start`` on, after a text that the model reads as its own."""
    tokens = torch.tensor([[*text, *target]])
    scores = torch.log_softmax(backbone.logits(backbone.hidden(tokens)[0]), dim=-1)
    first = len(text) + start
    return -sum(float(scores[n - 1, tokens[0, n]]) for n in range(first, tokens.shape[1]))


@torch.no_grad()
def _loss_after(session: Session, reading: Reading, episode: Episode) -> float:
    with session.backbone.reading([reading]) as cache:
        hidden = session.backbone.hidden(episode.target[None], cache=cache)
    scores = torch.log_softmax(session.backbone.logits(hidden[0]), dim=-1)
    supervised = range(episode.answer, len(episode.target))
    return -sum(float(scores[n - 1, episode.target[n]]) for n in supervised)


@torch.no_grad()
def _readings(session: Session, episodes: Sequence[Episode], turns: bool) -> list[Reading]:
    readings = []
    for episode in episodes:
        state = session.method.init()
        for text in episode.segments if turns else [torch.cat(episode.segments)]:
            state = session.method.write(state, text[None])
        readings.append(session.method.read(state))
    return readings


def gap_rows(
    opened: Session, methods: Sequence[str], episodes: Sequence[Episode], *, turns: bool
) -> dict[tuple[str, str], float]:
    """The loss per token of each method and the references, the gap that it closes, and its control's."""
    sums: dict[str, tuple[float, float]] = {}
    for spec in ("nothing", "full", *methods):
        name, _, rest = spec.partition(":")
        options = {key: int(value) for key, value in (pair.split("=") for pair in rest.split(";") if pair)}
        session = load(opened.backbone, method=name, encoder=opened.encoder, **options)
        readings = _readings(session, episodes, turns)
        others = [*readings[1:], readings[0]]
        sums[spec] = tuple(  # type: ignore[assignment]
            sum(_loss_after(session, *pair) for pair in zip(each, episodes, strict=True)) for each in (readings, others)
        )
    tokens = sum(len(episode.target) - episode.answer for episode in episodes)
    floor, ceiling = sums["nothing"][0], sums["full"][0]
    rows = {(spec, "loss"): own / tokens for spec, (own, _) in sums.items()}
    rows |= {(spec, "gap_closed"): (floor - sums[spec][0]) / (floor - ceiling) for spec in methods}
    controlled = ["full", *methods]
    return rows | {
        (spec, "gap_closed_by_other_text"): (floor - sums[spec][1]) / (floor - ceiling) for spec in controlled
    }
