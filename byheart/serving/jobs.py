"""What an engine is asked to do, and what it gives back: values, all that the web side and the model side share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from byheart.generation.decoding import Decoding
from byheart.protocol.state import Header, Written

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class MemoryRef:
    """One version of a memory: the name under which it stays resident, and how to come by its file.

    ``key`` is ``TENANT:SHA256`` of the state file's bytes, so a version is never confused with another tenant's, nor
    with a later one. ``fetch`` gives a local path of that file, and may take long.
    """

    key: str
    fetch: Callable[[], Path]


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Ask:
    """A question to a model that reads a memory first, or none.

    Args:
        model: the name under which the engine serves a model.
        prompt: a conversation that ends with the user's message, or bare text for the model to continue.
        logprobs: how many of the likeliest tokens are given with each token; None for no probabilities at all.
        tenant: whose it is, for fairness.
    """

    model: str
    prompt: Sequence[Message] | str
    memory: MemoryRef | None = None
    decoding: Decoding = field(default_factory=Decoding)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    tenant: str = ""


@dataclass(frozen=True)
class TokenScore:
    """A token of an answer with its natural log probability, and the likeliest ones at its place."""

    token: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer."""

    text: str
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of an answer. ``prompt_tokens`` counts the memory's slots too, which are ``cached_tokens``."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class NewText:
    """A text to be written, or with an ``answer`` a turn of a conversation whose question is ``text``."""

    text: str
    source: str = "text"
    answer: str | None = None


@dataclass(frozen=True)
class Write:
    """Texts to be written, in order, into a version of a memory, or into a new memory where there is none yet.

    Args:
        method, options: of a new memory, as for ``byheart.load``.
        folder: where the new state file is put.
    """

    model: str
    texts: Sequence[NewText]
    folder: Path
    memory: MemoryRef | None = None
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tenant: str = ""


@dataclass(frozen=True)
class NewState:
    """What a write made: a state file of its own, which now belongs to the caller; the engine keeps it resident."""

    path: Path
    sha256: str
    bytes: int
    header: Header
    entries: tuple[Written, ...]


Progress: TypeAlias = Callable[[int, int], None]
"""Called with the tokens done and the tokens in all; from any thread."""


@dataclass(frozen=True)
class Load:
    """How busy an engine is. ``resident`` counts memories that need no loading, ``resident_bytes`` what they take."""

    running: int
    waiting: int
    resident: int
    resident_bytes: int


@runtime_checkable
class Engine(Protocol):
    """Owns the models. Every call but ``close`` is made from the event loop's thread.

    A job that is cancelled (its task, or its iterator closed) costs nothing more.
    """

    def ask(self, job: Ask) -> AsyncIterator[Piece | Finished]:
        """The answer piece by piece; ``Finished`` comes last.

        Raises BusyError where too many wait, InputError, StateError, StoreError, UsageError.
        """

    async def write(self, job: Write, progress: Progress | None = None) -> NewState:
        """Write texts; nothing is left in ``folder`` on an error. Raises as ``ask`` does."""

    async def examine(self, path: Path, model: str, tenant: str = "") -> Header:
        """The header of a state file from elsewhere, once the model can read all of it. Raises StateError."""

    def drop(self, keys: Sequence[str]) -> int:
        """Let go of resident memories for certain, once no answer reads them; gives how many there were."""

    @property
    def residents(self) -> Sequence[str]:
        """The keys of memories of which something is held here, opened or decoded; ``drop`` lets go of it."""

    @property
    def models(self) -> Mapping[str, str]:
        """Served name -> the fingerprint of the model."""

    @property
    def slot_bytes(self) -> Mapping[str, int]:
        """Served name -> the bytes of one slot as the model makes it, with which memories are compared."""

    @property
    def load(self) -> Load:
        """How busy it is now."""

    def close(self, timeout: float = 0.0) -> None:
        """Take no more jobs; end those that still run after ``timeout`` seconds."""
