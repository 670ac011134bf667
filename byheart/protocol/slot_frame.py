"""What the chat template puts around texts, for methods that keep slots: made again when it is read, and never kept.

The opening is the same for every memory, so its slots are made once. What follows the last text, the receipt, is read
again after what was kept. Between two texts it is text as any other.

    written:  opening | text | receipt   text | receipt
    kept:               text | receipt | text
    read:     opening | text | receipt | text | receipt

State: `opening`, `receipt` (B, 0), which say by being there that the template stands before and after what was kept.

Dimensions: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from byheart.model.backbone import Backbone
from byheart.model.reading import KV
from byheart.protocol.chat_frame import ChatFrame
from byheart.protocol.kv_slots import concat, map_slots
from byheart.protocol.segments import split_segments
from byheart.protocol.state import State

_MARKS = ("opening", "receipt")


class Framed(NamedTuple):
    """A piece of text without the template, what it is read after, and the marks of the state that it leaves."""

    tokens: Int[Tensor, "B T"]
    front: KV | None
    marks: State


class SlotFrame:
    """The tokens that the chat template puts before the first text, and after each, as slots."""

    def __init__(self, backbone: Backbone, opening: Sequence[int], receipt: Sequence[int]) -> None:
        self.backbone = backbone
        self._frame = ChatFrame(list(opening), list(receipt))

    @property
    def most(self) -> int:
        """How many slots it has at most."""
        return len(self._frame.opening) + len(self._frame.receipt)

    def slots(self, state: State) -> int:
        """How many slots it has around the slots of a state."""
        return sum(len(tokens) for name, tokens in self._tokens.items() if name in state)

    def split(self, state: State, piece: Int[Tensor, "B T"]) -> Framed:
        """A piece that is written into ``state``: what is kept of it, with the receipt of the text before."""
        before, after = self._frame.template_around(piece, first=not state)
        text = piece[:, before : piece.shape[1] - after]
        if "receipt" in state:
            text = torch.cat([self._rows("receipt", text), text], dim=1)
        there = {"opening": "opening" in state or before, "receipt": after}
        mark = torch.zeros(len(piece), 0, dtype=torch.int32, device=self.backbone.device)
        marks = {name: mark.clone() for name in _MARKS if there[name]}
        return Framed(text, self.front(marks, len(piece)), marks)

    def front(self, state: State, batch: int) -> KV | None:
        """The slots of the opening, at positions from 0 on, where it stands before those of a state."""
        if "opening" not in state:
            return None
        return map_slots(lambda part: part.expand(batch, -1, -1, -1), self._opening)

    def around(self, state: State, kept: KV) -> KV:
        """The slots of a state, at their positions, with the template's before and after them."""
        front = self.front(state, kept.batch)
        prefix = concat(front, kept) if front else kept
        if "receipt" not in state:
            return prefix
        return prefix.append(self.backbone.prefill(self._rows("receipt", kept.keys[0]), prefix))

    def pieces(self, segment: Int[Tensor, "B T"], *, longest: int) -> Iterator[Int[Tensor, "B t"]]:
        """Parts of at most ``longest`` tokens of text; the template stays with its own. Raises InputError."""
        return framed_pieces(segment, *self._frame.template_around(segment), longest=longest)

    def key(self, state: State, segment: Int[Tensor, "B T"]) -> Hashable:
        """What texts must have in common to be split as one batch."""
        return self._frame.template_around(segment, first=not state)

    def template(self, state: State) -> State:
        """The marks that a state has and can have."""
        names = [name for name in _MARKS if name in state and self._tokens[name]]
        return {name: torch.zeros(1, 0, dtype=torch.int32) for name in names}

    @property
    def _tokens(self) -> dict[str, Sequence[int]]:
        return {"opening": self._frame.opening, "receipt": self._frame.receipt}

    def _rows(self, name: str, like: Tensor) -> Int[Tensor, "B t"]:
        """The template's tokens for each row of a batch."""
        return torch.tensor(self._tokens[name], device=like.device).expand(len(like), -1)

    @cached_property
    def _opening(self) -> KV:
        # Kept for other calls, which may learn: tensors of inference mode cannot be part of that.
        with torch.inference_mode(False), torch.no_grad():
            return self.backbone.prefill(torch.tensor([list(self._frame.opening)], device=self.backbone.device))


def framed_pieces(
    segment: Int[Tensor, "B T"], before: int, after: int, *, longest: int
) -> Iterator[Int[Tensor, "B t"]]:
    """Parts of at most ``longest`` tokens of text, what stands before and after it with the first and the last.

    Raises InputError for a segment without tokens.
    """
    text = segment[:, before : segment.shape[1] - after]
    if before and not text.shape[1]:
        yield segment
        return
    start = 0
    for piece in split_segments(text, longest=longest):
        stop = start + piece.shape[1]
        first, last = start == 0, stop == text.shape[1]
        yield segment[:, 0 if first else before + start : segment.shape[1] if last else before + stop]
        start = stop
