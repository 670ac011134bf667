"""What the catalogue tells of memories: values, which change nothing when they are changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from byheart.errors import StoreError, UsageError

Item = TypeVar("Item")
Operation: TypeAlias = Literal["write", "chat", "import", "restore", "fork"]


@dataclass(frozen=True)
class Expiry:
    """When a memory goes by itself: so many seconds after it was made, or after it was last used."""

    seconds: int
    anchor: Literal["last_active_at", "created_at"] = "last_active_at"


@dataclass(frozen=True)
class Quota:
    """What a tenant may have; None is no bound. Bytes are those stored: what versions share is counted once."""

    memories: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Parent:
    """The memory that a fork was made of, and the version."""

    id: str
    version: int


@dataclass(frozen=True)
class Memory:
    """A memory as it is now. ``version`` 0: nothing was written, so there are no bytes and no ``sha256``.

    ``bytes``, ``sha256``, ``slots``, ``tokens`` and ``characters`` are those of its newest version. ``method`` is None
    where the first write is to choose it.
    """

    id: str
    name: str | None
    model: str
    method: str | None
    options: Mapping[str, Any]
    metadata: Mapping[str, str]
    subject: str
    version: int
    created_at: datetime
    last_active_at: datetime
    expires_at: datetime | None = None
    expires_after: Expiry | None = None
    bytes: int = 0
    sha256: str = ""
    slots: int = 0
    tokens: int = 0
    characters: int = 0
    parent: Parent | None = None


@dataclass(frozen=True)
class Version:
    """A state that a memory has or had. ``entry`` says what was written (source, tokens, ...), never the text.

    ``tokens`` and ``characters`` are those of all that was written until then. ``key`` is ``TENANT:SHA256``.
    """

    memory_id: str
    number: int
    sha256: str
    bytes: int
    operation: str
    created_at: datetime
    slots: int
    tokens: int
    characters: int
    entry: Mapping[str, Any]
    key: str


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some of a list; where ``has_more``, the rest comes after the last one."""

    data: tuple[Item, ...]
    has_more: bool = False


@dataclass(frozen=True)
class Deleted:
    """What is gone. ``bytes`` are those freed; ``keys`` (TENANT:SHA256) must leave whatever keeps readings.

    ``pending`` objects belong to nothing any more, but could not be deleted yet: the next sweep deletes them. Their
    keys are among ``keys``.
    """

    memories: int = 0
    versions: int = 0
    bytes: int = 0
    keys: tuple[str, ...] = ()
    pending: int = 0


def require_subject(memory: Memory, subject: str) -> None:
    """Raise UsageError where a memory is about another subject than the one that is said, if any."""
    if subject and memory.subject != subject:
        raise UsageError(
            f"Memory '{memory.name or memory.id}' is about {repr(memory.subject) if memory.subject else 'nobody'}, not "
            f"'{subject}', and would not be forgotten with the others; leave that out, or write under another name."
        )


def require_gone(deleted: Deleted) -> Deleted:
    """The same. Raises StoreError where bytes of what was deleted are left."""
    if deleted.pending:
        raise StoreError(
            f"It is forgotten, but {deleted.pending} of its files cannot be deleted now; `byheart gc` deletes them, "
            "and so does a server's next sweep."
        )
    return deleted


@dataclass(frozen=True)
class Swept:
    """What a sweep removed: expired memories, objects, and files of processes that are gone.

    ``keys`` and ``pending`` are as in ``Deleted``.
    """

    memories: int = 0
    objects: int = 0
    bytes: int = 0
    files: int = 0
    keys: tuple[str, ...] = ()
    pending: int = 0


@dataclass(frozen=True)
class Usage:
    """What a tenant has, and may have."""

    memories: int
    bytes: int
    quota: Quota = field(default_factory=Quota)


@dataclass(frozen=True)
class AuditEntry:
    """Something that was done to a memory, without anything of what it held or was called."""

    number: int
    at: datetime
    action: str
    memory_id: str | None
    version: int | None
    counts: Mapping[str, int]
