"""Bodies and objects of the routes under /v1/memories."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue, StringConstraints, model_validator

from byheart.serving.http.wire.fields import Closed, Metadata, Name, Source, Subject, VersionNumber
from byheart.serving.http.wire.questions import Messages
from byheart.store.values import AuditEntry, Deleted, Expiry, Memory, Page, Usage, Version


class ExpiresAfter(Closed):
    """When a memory goes by itself."""

    anchor: Literal["last_active_at", "created_at"] = "last_active_at"
    seconds: Annotated[int, Field(ge=1, le=10 * 366 * 86_400)]

    def to_expiry(self) -> Expiry:
        """As the store has it."""
        return Expiry(self.seconds, self.anchor)


class NewMemory(Closed):
    """Of POST /v1/memories."""

    name: Name | None = None
    model: Annotated[str, StringConstraints(max_length=512)] | None = None
    method: Annotated[str, StringConstraints(pattern="^[0-9A-Za-z._-]{1,100}$")] | None = None
    options: Annotated[dict[str, JsonValue], Field(max_length=64)] = Field(default_factory=dict)
    metadata: Metadata = Field(default_factory=dict)
    subject: Subject = ""
    expires_after: ExpiresAfter | None = None


class ChangedMemory(Closed):
    """Of POST /v1/memories/{id}; only what is given is changed."""

    name: Name | None = None
    metadata: Metadata | None = None
    expires_after: ExpiresAfter | None = None

    def changes(self) -> dict[str, Any]:
        """As the store takes them."""
        changes: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        if self.expires_after is not None:
            changes["expires_after"] = self.expires_after.to_expiry()
        if "metadata" in changes:
            changes["metadata"] = self.metadata or {}
        return changes


class NewWrite(Closed):
    """Of POST /v1/memories/{id}/writes: a text, or messages of a conversation.

    Args:
        if_version: the version that the memory must have, so that nobody else wrote between; 0 where it has none.
        stream: tell in events how far the write is.
    """

    text: str | None = None
    messages: Messages | None = None
    source: Source | None = None
    if_version: VersionNumber | None = None
    stream: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> NewWrite:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        return self


class NewFork(Closed):
    """Of POST /v1/memories/{id}/fork."""

    name: Name | None = None
    version: Annotated[int, Field(ge=1, lt=1 << 53)] | None = None


class MemoryObject(BaseModel):
    """A memory as it is told. Times are seconds since 1970; ``version`` is 0 where nothing was written."""

    id: str
    object: Literal["memory"] = "memory"
    name: str | None
    model: str
    method: str | None
    options: dict[str, Any]
    version: int
    slots: int
    tokens: int
    characters: int
    bytes: int
    sha256: str
    metadata: dict[str, str]
    subject: str
    parent: dict[str, Any] | None
    created_at: int
    last_active_at: int
    expires_at: int | None
    expires_after: dict[str, Any] | None

    @classmethod
    def of(cls, memory: Memory) -> MemoryObject:
        """As the store has it."""
        after, parent = memory.expires_after, memory.parent
        same = ("id", "name", "model", "method", "version", "slots", "tokens", "characters", "bytes", "sha256")
        return cls(
            **{name: getattr(memory, name) for name in (*same, "subject")},
            options=dict(memory.options),
            metadata=dict(memory.metadata),
            parent={"id": parent.id, "version": parent.version} if parent else None,
            created_at=_seconds(memory.created_at),
            last_active_at=_seconds(memory.last_active_at),
            expires_at=_seconds(memory.expires_at) if memory.expires_at else None,
            expires_after={"anchor": after.anchor, "seconds": after.seconds} if after else None,
        )


class VersionObject(BaseModel):
    """A version as it is told; ``entry`` says what was written, never the text."""

    object: Literal["memory.version"] = "memory.version"
    memory: str
    version: int
    operation: str
    sha256: str
    bytes: int
    slots: int
    tokens: int
    characters: int
    entry: dict[str, Any]
    created_at: int

    @classmethod
    def of(cls, version: Version) -> VersionObject:
        """As the store has it."""
        same = ("operation", "sha256", "bytes", "slots", "tokens", "characters")
        return cls(
            **{name: getattr(version, name) for name in same},
            memory=version.memory_id,
            version=version.number,
            entry=dict(version.entry),
            created_at=_seconds(version.created_at),
        )


class WriteObject(VersionObject):
    """What a write has made: the version that it is, and what was written."""

    object: Literal["memory.write"] = "memory.write"  # type: ignore[assignment]


class DeletedObject(BaseModel):
    """What is gone.

    ``pending`` objects nobody can read any more, but their bytes could not be deleted yet; ``deleted`` is false then.
    The same call once more deletes them, and so does the next sweep.
    """

    id: str | None = None
    object: Literal["memory.deleted"] = "memory.deleted"
    deleted: bool = True
    memories: int
    versions: int
    bytes: int
    pending: int = 0

    @classmethod
    def of(cls, deleted: Deleted, id: str | None = None) -> DeletedObject:
        """As the store tells it."""
        counts = {name: getattr(deleted, name) for name in ("memories", "versions", "bytes", "pending")}
        return cls(id=id, deleted=not deleted.pending, **counts)


class UsageObject(BaseModel):
    """What a tenant has, and may have; null is no bound."""

    object: Literal["usage"] = "usage"
    memories: int
    bytes: int
    quota: dict[str, int | None]

    @classmethod
    def of(cls, usage: Usage) -> UsageObject:
        """As the store tells it."""
        quota = {"memories": usage.quota.memories, "bytes": usage.quota.bytes}
        return cls(memories=usage.memories, bytes=usage.bytes, quota=quota)


class AuditObject(BaseModel):
    """Something that was done, without anything of what a memory held or was called."""

    object: Literal["audit.entry"] = "audit.entry"
    number: int
    at: int
    action: str
    memory: str | None
    version: int | None
    counts: dict[str, int]

    @classmethod
    def of(cls, entry: AuditEntry) -> AuditObject:
        """As the store has it."""
        return cls(
            number=entry.number,
            at=_seconds(entry.at),
            action=entry.action,
            memory=entry.memory_id,
            version=entry.version,
            counts=dict(entry.counts),
        )


def page_object(page: Page[Any], items: list[BaseModel], marks: list[str]) -> Mapping[str, Any]:
    """A part of a list as OpenAI has it; ``marks`` are what ``after`` takes."""
    return {
        "object": "list",
        "data": [item.model_dump() for item in items],
        "first_id": marks[0] if marks else None,
        "last_id": marks[-1] if marks else None,
        "has_more": page.has_more,
    }


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
