"""Batches of given episodes, dealt by length, and cut to the model's positions."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from byheart.errors import UsageError
from byheart.protocol.episode import Batch, Episode, collate


def _source(
    episodes: Callable[[int], Batch] | Sequence[Episode], batch: int, packed: int, seed: int
) -> tuple[Callable[[int], Batch], dict[str, Any]]:
    """What gives the batch of a number, and what decides it where that is known."""
    if callable(episodes):
        return episodes, {}
    shuffled = _Shuffled(episodes, batch, packed, seed)
    return shuffled, shuffled.made_of()


class _Shuffled:
    """Batches of given episodes, in an order drawn anew each time through; call it with a batch's number."""

    def __init__(self, episodes: Sequence[Episode], batch: int, packed: int, seed: int) -> None:
        if not episodes:
            raise UsageError("There are no episodes to train on.")
        self.episodes, self.batch, self.packed, self.seed = list(episodes), batch, packed, seed
        self._order = (-1, [list(self.episodes)])

    def __call__(self, number: int) -> Batch:
        through, place = divmod(number, len(_alike(self.episodes, self.batch)))
        if self._order[0] != through:
            draw = random.Random(f"{self.seed} episodes {through}")
            groups = _alike(draw.sample(self.episodes, len(self.episodes)), self.batch, self.packed)
            self._order = (through, draw.sample(groups, len(groups)))
        return collate(self._order[1][place])

    def made_of(self) -> dict[str, Any]:
        """What decides the batches, in types that JSON has."""
        rows = [([s.tolist() for s in each.segments], each.target.tolist(), each.answer) for each in self.episodes]
        told = {"episodes": hashlib.sha256(repr(rows).encode()).hexdigest()[:16], "batch": self.batch}
        return {**told, "packed": self.packed} if self.packed > 1 else told


def _alike(episodes: Sequence[Episode], batch: int, packed: int = 1) -> list[list[Episode]]:
    """Groups of at most ``batch`` episodes with equally many segments, those of ``packed`` groups dealt by length."""
    by_count: dict[int, list[Episode]] = {}
    for episode in episodes:
        by_count.setdefault(len(episode.segments), []).append(episode)
    groups: list[list[Episode]] = []
    for same in by_count.values():
        for first in range(0, len(same), batch * packed):
            drawn = same[first : first + batch * packed]
            if packed > 1:
                drawn.sort(key=lambda one: (max(map(len, one.segments), default=0), len(one.target)))
            groups += (drawn[at : at + batch] for at in range(0, len(drawn), batch))
    return groups


def _batches(given: Sequence[Batch | Episode], batch: int) -> list[Batch]:
    loose = _alike([each for each in given if isinstance(each, Episode)], batch)
    return [*(each for each in given if isinstance(each, Batch)), *map(collate, loose)]


def _fitted(batch: Batch, positions: int, *, cut: bool) -> Batch:
    """The batch with at most ``positions`` tokens an episode: the oldest text goes, or UsageError."""
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
