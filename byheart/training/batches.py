"""Batches of given episodes, dealt by length, and cut to the model's positions."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from byheart.errors import UsageError
from byheart.protocol.episode import Batch, Episode, collate
from byheart.protocol.grouping import group


class Shuffled:
    """Batches of given episodes, in an order drawn anew for each pass; call it with a batch's number.

    Args:
        batch: episodes of a batch, at most.
        packed: batches that are drawn together, their episodes dealt to them by length, so that less is padding.
    """

    def __init__(self, episodes: Sequence[Episode], batch: int, packed: int, seed: int) -> None:
        if not episodes:
            raise UsageError("There are no episodes to train on.")
        self.episodes, self.batch, self.packed, self.seed = list(episodes), batch, packed, seed
        self._count = len(_group(self.episodes, batch))
        self._order: tuple[int, list[list[Episode]]] = (-1, [])

    def __call__(self, number: int) -> Batch:
        """Batch ``number``, from 0 on."""
        completed, place = divmod(number, self._count)
        if self._order[0] != completed:
            draw = random.Random(f"{self.seed} episodes {completed}")
            groups = _group(draw.sample(self.episodes, len(self.episodes)), self.batch, self.packed)
            self._order = (completed, draw.sample(groups, len(groups)))
        return collate(self._order[1][place])

    def made_of(self) -> dict[str, Any]:
        """What decides the batches, in types that JSON has."""
        contents = [([s.tolist() for s in e.segments], e.target.tolist(), e.answer) for e in self.episodes]
        record = {"episodes": hashlib.sha256(repr(contents).encode()).hexdigest()[:16], "batch": self.batch}
        return {**record, "packed": self.packed} if self.packed > 1 else record


def open_batches(
    episodes: Callable[[int], Batch] | Sequence[Episode], batch: int, packed: int, seed: int
) -> tuple[Callable[[int], Batch], dict[str, Any]]:
    """What gives the batch of a number, and what decides it where that is known."""
    if callable(episodes):
        return episodes, {}
    shuffled = Shuffled(episodes, batch, packed, seed)
    return shuffled, shuffled.made_of()


def collate_all(examples: Sequence[Batch | Episode], batch: int) -> list[Batch]:
    """Batches as they are, then the episodes among them in batches of at most ``batch``."""
    episodes = [example for example in examples if isinstance(example, Episode)]
    batches = [example for example in examples if isinstance(example, Batch)]
    return [*batches, *map(collate, _group(episodes, batch))]


def write_others(batches: Sequence[Batch], count: int) -> list[Batch]:
    """Each batch with the segments of the next ``count`` ones after its own. Raises UsageError where it is alone."""
    if len(batches) < 2:
        raise UsageError("retention writes the texts of other held-out batches; here is one alone. Give more held out.")
    found = []
    for place, batch in enumerate(batches):
        others = [batches[(place + n) % len(batches)] for n in range(1, count + 1)]
        rows = [torch.arange(len(batch.target)) % len(other.target) for other in others]
        parts = {
            name: _joined([getattr(batch, name), *(getattr(o, name)[r] for o, r in zip(others, rows, strict=True))])
            for name in ("segments", "mask")
        }
        found.append(replace(batch, **parts))
    return found


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Segments (B, S, T) one after another, padded on the left to one length."""
    longest = max(part.shape[2] for part in parts)
    return torch.cat([pad(part, (longest - part.shape[2], 0)) for part in parts], dim=1)


def fit_positions(batch: Batch, positions: int, *, cut: bool) -> Batch:
    """The batch with at most ``positions`` tokens per episode: the oldest text goes, or UsageError."""
    target = batch.target.shape[1]
    longest = int(batch.mask.sum(dim=(1, 2)).max()) + target
    if longest <= positions:
        return batch
    if not cut or target >= positions:
        raise UsageError(
            f"An episode has {longest} tokens, {target} of them its target; the model has positions for {positions}. "
            "Give fewer or shorter segments or a shorter target; too_long = 'cut' leaves out the oldest text."
        )
    # How many tokens of text there are from each one on.
    onward = batch.mask.flatten(1).flip(1).cumsum(1).flip(1).view_as(batch.mask)
    kept = batch.mask & (onward <= positions - target)
    # Episodes of a batch have equally many segments.
    whole = kept.any(dim=2).all(dim=0)
    return replace(batch, segments=batch.segments[:, whole], mask=kept[:, whole])


def _group(episodes: Sequence[Episode], batch: int, packed: int = 1) -> list[list[Episode]]:
    """Groups of at most ``batch`` episodes with equally many segments, those of ``packed`` groups dealt by length."""
    groups: list[list[Episode]] = []
    for alike in group(episodes, lambda episode: len(episode.segments)).values():
        for first in range(0, len(alike), batch * packed):
            drawn = alike[first : first + batch * packed]
            if packed > 1:
                drawn.sort(key=lambda episode: (max(map(len, episode.segments), default=0), len(episode.target)))
            groups += (drawn[start : start + batch] for start in range(0, len(drawn), batch))
    return groups
