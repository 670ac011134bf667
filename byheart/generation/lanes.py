"""One forward pass for many sequences: rows of a cache in, scores of each sequence's next token out.

A sequence has one lane, or two where its scores set one reading against another; a lane is a row of the batch. What
several sequences need is computed once: one pass through the decoder, one product with the head. It does not know how
tokens are chosen.

Dimensions: N lanes, S sequences, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from byheart.errors import InputError
from byheart.generation.contrast import contrast
from byheart.generation.dola import dola_scores
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache, without_row
from byheart.model.reading import Delta, Reading


@dataclass(frozen=True)
class Lane:
    """A row of the batch: what it reads, and which changes of linear layers it sees.

    ``block_deltas`` change the last feed-forward block alone, which runs a second time with them. ``layers`` are those
    whose outputs DoLa compares. ``strength`` weighs this lane against the ``unconditional`` one, or the changed block
    against the plain one.
    """

    prompt: Int[Tensor, " T"]
    reading: Reading
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    block_deltas: Mapping[str, Delta] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    strength: float = 0.0
    unconditional: Lane | None = None


class LaneBatch:
    """Sequences whose lanes are rows of one cache.

    Args:
        lanes: one for each sequence; ``unconditional`` ones become rows of their own.
        cache: holds the lanes' prefixes, in the order of ``rows``.
    """

    def __init__(self, backbone: Backbone, lanes: Sequence[Lane], cache: PrefixCache) -> None:
        self.backbone, self.lanes, self.cache = backbone, list(lanes), cache
        self.rows = rows_of(lanes)
        self._unread = pad_left([lane.prompt for lane in self.rows], backbone.device)
        self._prepare()

    def _prepare(self) -> None:
        """What depends on which lanes there are."""
        places = {id(lane): row for row, lane in enumerate(self.rows)}
        self._places = [places[id(lane)] for lane in self.lanes]
        self._in_order = self._places == list(range(len(self.rows)))
        self._against = {n: places[id(lane.unconditional)] for n, lane in enumerate(self.lanes) if lane.unconditional}
        self._blocks = [n for n, lane in enumerate(self.lanes) if lane.block_deltas]
        self._compared = [n for n, lane in enumerate(self.lanes) if lane.layers]
        self._early = sorted({layer for lane in self.lanes for layer in lane.layers})
        self._changes = self.backbone.changes([lane.deltas for lane in self.rows])
        self._block_changes = self.backbone.changes([self.lanes[n].block_deltas for n in self._blocks])

    def keep(self, numbers: Sequence[int]) -> None:
        """Drop all sequences but those of these numbers: the rows of the others cost nothing from here on."""
        self.lanes = [self.lanes[n] for n in numbers]
        if not self.lanes:
            self.rows = []
            return
        kept = {id(lane) for lane in rows_of(self.lanes)}
        for row in reversed([row for row, lane in enumerate(self.rows) if id(lane) not in kept]):
            self.cache.drop(row)
            self.rows[row] = self.rows[-1]
            self.rows.pop()
            tokens, mask = self._unread
            self._unread = without_row(tokens, row), without_row(mask, row)
        self.cache.trim()
        self._prepare()

    def join(self, other: LaneBatch) -> None:
        """Take in the sequences of another batch, after these."""
        self.cache.join(other.cache)
        self.lanes += other.lanes
        self.rows += other.rows
        tokens, mask = (torch.cat(pair) for pair in zip(self._unread, other._unread, strict=True))
        self._unread = tokens, mask
        self._prepare()

    def read_prompts(self, tokens: int | None = None) -> Float[Tensor, "S V"] | None:
        """Read prompts on; gives scores of each sequence's first token once every lane has read all of its own.

        Args:
            tokens: the most that are read now, of all lanes; all without it.
        """
        unread, mask = self._unread
        columns = unread.shape[1] if tokens is None else max(1, tokens // len(self.rows))
        now, self._unread = (unread[:, :columns], mask[:, :columns]), (unread[:, columns:], mask[:, columns:])
        if columns >= unread.shape[1]:
            return self._scores(*now)
        with self.backbone.changing(self._changes):
            self.backbone.hidden(now[0], cache=self.cache, mask=now[1])
        return None

    def read_tokens(self, tokens: Sequence[int]) -> Float[Tensor, "S V"]:
        """Scores of each sequence's next token after ``tokens``, one for each sequence."""
        by_lane = {id(lane): token for lane, token in zip(self.lanes, tokens, strict=True)}
        by_lane |= {id(lane.unconditional): by_lane[id(lane)] for lane in self.lanes if lane.unconditional}
        rows = [[by_lane[id(lane)]] for lane in self.rows]
        return self._scores(torch.tensor(rows, device=self.backbone.device), None)

    def _scores(self, tokens: Int[Tensor, "N T"], mask: Tensor | None) -> Float[Tensor, "S V"]:
        states = self._hidden(tokens, mask)
        parts = torch.split(self.backbone.logits(torch.cat(states)), [len(part) for part in states])
        scores = parts[0] if self._in_order else parts[0][self._places]
        if not (self._against or self._blocks or self._compared):
            return scores
        scores = scores.clone()
        for number, row in self._against.items():
            scores[number] = contrast(scores[number], parts[0][row], self.lanes[number].strength)
        for number, tuned in zip(self._blocks, parts[1] if self._blocks else (), strict=True):
            scores[number] = contrast(tuned, scores[number], self.lanes[number].strength)
        first = 1 + bool(self._blocks)
        layers = dict(zip(self._early, (torch.log_softmax(part, dim=-1) for part in parts[first:]), strict=True))
        for place, number in enumerate(self._compared):
            candidates = torch.stack([layers[layer][place] for layer in self.lanes[number].layers])
            mature = torch.log_softmax(scores[number], dim=-1)
            scores[number] = dola_scores(mature[None], candidates[:, None])[0]
        return scores

    def _hidden(self, tokens: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Final states (N, D) of the rows, of the sequences whose last block changes, and of each early layer."""
        last = len(self.backbone.layers) - 1
        compared = [self._places[number] for number in self._compared]
        early: list[Tensor] = []

        def take(index: int, hidden: Tensor) -> None:
            if index in self._early:
                # As published, an early layer's states go to the head without the final norm.
                early.append(hidden[compared, -1])

        with ExitStack() as stack:
            if compared:
                stack.enter_context(self.backbone.layer_outputs(take))
            fed = stack.enter_context(self.backbone.feed_forward_inputs(last)) if self._blocks else []
            stack.enter_context(self.backbone.changing(self._changes))
            hidden = self.backbone.hidden(tokens, cache=self.cache, mask=mask)[:, -1]
        if not self._blocks:
            return [hidden, *early]
        rows = [self._places[number] for number in self._blocks]
        place = self.backbone.feed_forward(last)
        with self.backbone.changing(self._block_changes):
            output = place.block(fed[0].input[rows, -1:])
        changed = self.backbone.finish(place.finish(fed[0].residual[rows, -1:], output))[:, 0]
        return [hidden, changed, *early]


def rows_of(lanes: Sequence[Lane]) -> list[Lane]:
    """Lanes and their unconditional ones, in the order of a batch's rows."""
    return [*lanes, *(lane.unconditional for lane in lanes if lane.unconditional)]


def require_room(backbone: Backbone, prompt: Tensor, reading: Reading, *, answer_tokens: int = 1) -> int:
    """How many tokens of an answer there are positions for.

    Raises InputError where a prompt is empty, or leaves fewer than ``answer_tokens``.
    """
    if len(prompt) == 0:
        raise InputError("There is nothing to ask: the prompt is empty.")
    room = backbone.positions - reading.slots - len(prompt)
    if room < answer_tokens:
        raise InputError(
            f"The memory's {reading.slots} slots and the prompt's {len(prompt)} tokens leave no room for an answer: "
            f"the model reads at most {backbone.positions}. Ask something shorter, or keep a smaller memory."
        )
    return room


def pad_left(prompts: Sequence[Tensor], device: torch.device) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Prompts (T,) of any lengths as one batch, and the mask that is False at padding."""
    rows = [prompt.to(device, torch.long) for prompt in prompts]
    real = [torch.ones_like(row, dtype=torch.bool) for row in rows]
    tokens, mask = (pad_sequence(part, batch_first=True, padding_side="left") for part in (rows, real))
    return tokens, mask
