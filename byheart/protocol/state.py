"""The state of one memory, as a value: named tensors, and a header that says what they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, TypeAlias

import torch
from torch import Tensor

from byheart.errors import StateMismatchError

State: TypeAlias = Mapping[str, Tensor]
FORMAT = 3
SAMPLED_FORMATS = (1, 2)
"""Formats whose fingerprints cover samples of the weights, and of a tokenizer the vocabulary alone."""


@dataclass(frozen=True)
class Written:
    """One text that was written: where it came from, when (UTC), and how much it was."""

    source: str
    at: str
    tokens: int
    characters: int

    @classmethod
    def now(cls, source: str, *, tokens: int, characters: int) -> Written:
        """An entry for this moment."""
        return cls(source, datetime.now(timezone.utc).isoformat(timespec="seconds"), tokens, characters)


@dataclass(frozen=True)
class Header:
    """What a state belongs to and what was written into it.

    ``backbone``, ``tokenizer`` and ``adapter`` are fingerprints; ``model`` is the name that opened the backbone,
    ``dtype`` the precision it ran in, ``learned`` the folder of the method's learned parts, where it had one. Neither
    name is opened because a file says it.
    ``slots`` of ``capacity`` are held in the prefix; a capacity of None grows. ``text_format`` is ``turn`` where text
    was written as turns of a conversation, ``text`` where it was written bare, and empty in files that do not say.
    """

    method: str
    options: dict[str, Any]
    backbone: str
    tokenizer: str
    adapter: str
    model: str
    dtype: str = "float32"
    learned: str = ""
    slots: int = 0
    capacity: int | None = None
    text_format: str = ""
    format: int = FORMAT
    written: list[Written] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of text written so far."""
        return sum(entry.tokens for entry in self.written)

    @property
    def characters(self) -> int:
        """Characters of text written so far."""
        return sum(entry.characters for entry in self.written)

    def with_written(self, entry: Written) -> Header:
        """The same header after one more text."""
        return replace(self, written=[*self.written, entry])

    def require(self, mine: Header, where: str) -> None:
        """Raise StateMismatchError unless a state with this header can be read where ``mine`` is in use."""
        sides = {
            "another method": (self.method, mine.method),
            "another model": (f"{self.model} ({self.backbone})", f"{mine.model} ({mine.backbone})"),
            "another tokenizer": (self.tokenizer, mine.tokenizer),
            "another precision": (self.dtype, mine.dtype),
            "other options": (self.options, mine.options),
            "other trained parts": (self.adapter, mine.adapter),
        }
        # In another precision the same model has another end of its name: then the precision is what differs.
        short = self.dtype != mine.dtype
        names = [header.backbone.partition(".")[0] if short else header.backbone for header in (self, mine)]
        for what, (theirs, ours) in sides.items():
            same = names[0] == names[1] if what == "another model" else theirs == ours
            if not same:
                raise StateMismatchError(
                    f"{where} was made with {what}: it has {theirs}, this session has {ours}. "
                    "Open it with what made it, or write the text again."
                )


def nbytes(state: State) -> int:
    """Bytes of all tensors of a state."""
    return sum(tensor.nbytes for tensor in state.values())


def stack(states: Sequence[State]) -> State:
    """Many sessions of equal shapes as one batch."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def unstack(state: State) -> list[State]:
    """A batch as single sessions, each with tensors of its own."""
    batch = next(iter(state.values())).shape[0]
    return [{name: tensor[b : b + 1].clone() for name, tensor in state.items()} for b in range(batch)]
