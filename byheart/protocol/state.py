"""The state of one memory, as a value: named tensors, and a header that says what they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, InstanceOf

from byheart.errors import StateMismatchError, UsageError

if TYPE_CHECKING:
    import torch

State: TypeAlias = Mapping[str, "torch.Tensor"]
FORMAT = 3
SAMPLED_FORMATS = (1, 2)
"""Formats whose fingerprints cover samples of the weights, and of a tokenizer the vocabulary alone."""
_LONGEST = 4096
_LARGEST = 1 << 53


# As ``Written.now`` writes it. What else ``fromisoformat`` reads depends on the version of Python.
_MOMENT = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}[+]00:00$"


def _require_moment(text: str) -> str:
    """Raise ValueError unless there is such a time, of a year that any zone can show."""
    if not 1970 <= datetime.fromisoformat(text).year < 9999:
        raise ValueError("it must be a time since 1970")
    return text


# What a file may say. Names of files may hold half characters, which are no valid strings elsewhere.
_Text: TypeAlias = Annotated[InstanceOf[str], Field(max_length=_LONGEST)]
_Count: TypeAlias = Annotated[int, Field(ge=0, le=_LARGEST, strict=True)]
_Fingerprint: TypeAlias = Annotated[str, Field(pattern="^[0-9A-Za-z.:_-]{0,200}$", strict=True)]
_Moment: TypeAlias = Annotated[str, Field(pattern=_MOMENT, strict=True), AfterValidator(_require_moment)]


@dataclass(frozen=True)
class Written:
    """One text that was written: where it came from, when (UTC), and how much it was."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    source: _Text
    at: _Moment
    tokens: _Count
    characters: _Count

    @classmethod
    def now(cls, source: str, *, tokens: int, characters: int) -> Written:
        """An entry for this moment. Raises UsageError where a file could not hold the source's name."""
        if len(source) > _LONGEST:
            raise UsageError(f"source may have {_LONGEST} characters; it has {len(source)}. Give a shorter name.")
        return cls(source, datetime.now(timezone.utc).isoformat(timespec="seconds"), tokens, characters)


def _require_countable(written: list[Written]) -> list[Written]:
    """Raise ValueError where all texts together have more tokens or characters than a database can count."""
    if max(sum(entry.tokens for entry in written), sum(entry.characters for entry in written)) > _LARGEST:
        raise ValueError("its texts have too many tokens or characters together")
    return written


@dataclass(frozen=True)
class Header:
    """What a state belongs to and what was written into it.

    ``backbone``, ``tokenizer`` and ``adapter`` are fingerprints; ``model`` is the name that opened the backbone,
    ``dtype`` the precision it ran in, ``learned`` the folder of the method's learned parts, where it had one. Neither
    name is opened because a file says it.
    ``slots`` of ``capacity`` are held in the prefix; a capacity of None grows. ``text_format`` is ``turn`` where text
    was written as turns of a conversation, ``text`` where it was written bare, and empty in files that do not say.
    The types are those that a file must keep to.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    method: Annotated[str, Field(pattern="^[0-9A-Za-z._-]{1,100}$", strict=True)]
    options: Annotated[dict[_Text, Any], Field(max_length=64)]
    backbone: _Fingerprint
    tokenizer: _Fingerprint
    adapter: _Fingerprint
    model: _Text
    dtype: Annotated[str, Field(pattern="^[0-9a-z_]{1,40}$", strict=True)] = "float32"
    learned: _Text = ""
    slots: _Count = 0
    capacity: _Count | None = None
    text_format: Literal["", "text", "turn"] = ""
    format: _Count = FORMAT
    written: Annotated[list[Written], AfterValidator(_require_countable)] = field(default_factory=list)

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


def kv_slots(state: State) -> int:
    """How many slots of keys and values a state has; 0 without."""
    return state["keys.0"].shape[2] if "keys.0" in state else 0


def stack(states: Sequence[State]) -> State:
    """Many sessions of equal shapes as one batch."""
    # A header is read without PyTorch, which takes seconds to import.
    import torch

    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def unstack(state: State) -> list[State]:
    """A batch as single sessions, each with tensors of its own."""
    batch = next(iter(state.values())).shape[0]
    return [{name: tensor[b : b + 1].clone() for name, tensor in state.items()} for b in range(batch)]
