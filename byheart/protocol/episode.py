"""What a method is trained and measured on: segments to write, and a target to predict from what was kept.

An episode is a value; a batch stacks episodes of equally many segments. Nothing here knows text or models.

How a batch lies in memory, two episodes (x real, . padding, = supervised):

    segments | . . x x | x x x x |    target | x x = = |
             | x x x x | . x x x |           | x = . . |

Dimensions: B batch, S segments, T tokens per segment, U tokens of a target, C = S * T + U columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from byheart.errors import UsageError


@dataclass(frozen=True)
class Episode:
    """Text in ``segments`` (T,), then a ``target`` (U,) whose tokens from index ``answer`` >= 1 on are supervised.

    Without segments nothing is written: the target is all that there is to learn from.
    """

    segments: tuple[Int[Tensor, " _"], ...]
    target: Int[Tensor, " U"]
    answer: int = 1


@dataclass(frozen=True)
class Batch:
    """Episodes side by side. ``mask`` is False at padding of segments, ``labels`` True at supervised tokens."""

    segments: Int[Tensor, "B S T"]
    mask: Bool[Tensor, "B S T"]
    target: Int[Tensor, "B U"]
    labels: Bool[Tensor, "B U"]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{name: part.to(device) for name, part in vars(self).items()})

    @property
    def tokens(self) -> int:
        """Tokens to run, targets' padding included."""
        return int(self.mask.sum()) + self.target.numel()

    def rows(self, index: int) -> list[Int[Tensor, "1 _"]]:
        """Segment ``index`` of each episode, without its padding."""
        return [row[real][None] for row, real in zip(self.segments[:, index], self.mask[:, index], strict=True)]

    def joined(self) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B C"]]:
        """Each episode as one running text, padding last; and the place in it of every column, segments then target."""
        columns = torch.cat([self.segments.flatten(1), self.target], dim=1)
        real = torch.cat([self.mask.flatten(1), torch.ones_like(self.labels)], dim=1)
        order = (~real).byte().argsort(dim=1, stable=True)[:, : int(real.sum(1).max())]
        return columns.gather(1, order), (real.long().cumsum(1) - 1).clamp(min=0)

    def weights(self, every_segment: float = 0.0) -> Tensor:
        """How much each column's token counts, (B, C): targets 1 in all, text after the first segment the given share.

        A segment's first token is predicted by nothing in its own row, so it never counts.
        """
        text = torch.zeros_like(self.mask)
        text[:, 1:, 1:] = self.mask[:, 1:, 1:] & self.mask[:, 1:, :-1]
        if not every_segment:
            text = torch.zeros_like(text)
        shares = [part.float() / part.sum().clamp(min=1) for part in (text.flatten(1), self.labels)]
        return torch.cat([every_segment * shares[0], shares[1]], dim=1)


def collate(episodes: Sequence[Episode]) -> Batch:
    """Episodes as one batch. Raises UsageError unless all have equally many segments and an answer to supervise."""
    counts = {len(episode.segments) for episode in episodes}
    if len(counts) != 1:
        raise UsageError(f"Episodes of one batch need equally many segments; these have {sorted(counts)}.")
    for episode in episodes:
        if not 1 <= episode.answer < len(episode.target) or not all(len(segment) for segment in episode.segments):
            raise UsageError(
                f"An episode needs text in every segment and its answer within the target; "
                f"answer is {episode.answer} of {len(episode.target)} tokens."
            )
    rows = [segment for episode in episodes for segment in episode.segments]
    # Without segments there is a row without tokens an episode, to be padded like others.
    rows = rows or [torch.zeros(0, dtype=torch.long)] * len(episodes)
    segments, real = (_padded(each, "left") for each in (rows, [torch.ones_like(row) for row in rows]))
    targets = [episode.target for episode in episodes]
    labels = [torch.arange(len(episode.target)) >= episode.answer for episode in episodes]
    shape = (len(episodes), counts.pop(), segments.shape[1])
    return Batch(segments.view(shape), real.bool().view(shape), _padded(targets, "right"), _padded(labels, "right"))


def _padded(rows: list[Tensor], side: str) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_side=side)
