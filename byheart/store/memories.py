"""Memories of many users: a catalogue in SQL, state files as objects.

Every method may be called from any thread, and raises UnavailableError where the catalogue or the objects cannot be
reached: nothing that was acknowledged is lost then, and the next call tries again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from byheart.protocol.state import Header
from byheart.store import clock
from byheart.store.values import (
    AuditEntry,
    Deleted,
    Expiry,
    Memory,
    Operation,
    Page,
    Quota,
    Swept,
    Usage,
    Version,
)

_UNSET: Any = object()


class Memories:
    """All tenants' memories.

    Args:
        catalogue: ``sqlite:///PATH`` or ``postgresql+psycopg://...``.
        objects: a folder, or ``s3://``, ``gs://``, ``az://...``.
        cache: a folder for what was fetched from objects elsewhere.
    """

    def __init__(
        self, catalogue: str, objects: str, *, cache: Path | None = None, clock: clock.Clock = clock.now
    ) -> None:
        raise NotImplementedError

    @classmethod
    def at(cls, home: Path) -> Memories:
        """Those of a folder: HOME/byheart.sqlite3 and HOME/objects."""
        raise NotImplementedError

    @property
    def scratch(self) -> Path:
        """A folder for state files that are about to be committed; what is left there by a killed process is swept."""
        raise NotImplementedError

    def of(self, tenant: str, quota: Quota | None = None) -> TenantMemories:
        """Those of one tenant. Raises StoreError for what cannot be a tenant."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise UnavailableError unless catalogue and objects answer."""
        raise NotImplementedError

    def sweep(self) -> Swept:
        """Delete expired memories, objects that no version has, and what killed processes left."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of all connections."""
        raise NotImplementedError


class TenantMemories:
    """The memories of one tenant; it sees no others."""

    def create(
        self,
        name: str | None,
        *,
        model: str,
        method: str | None = None,
        options: Mapping[str, Any] = {},
        metadata: Mapping[str, str] = {},
        subject: str = "",
        expires_after: Expiry | None = None,
    ) -> Memory:
        """A new memory, with nothing written. Raises ConflictError where the name is taken, QuotaError, StoreError."""
        raise NotImplementedError

    def get(self, name_or_id: str) -> Memory:
        """A memory, which is not thereby used. Raises MissingError."""
        raise NotImplementedError

    def touch(self, id: str) -> None:
        """Note that a memory is in use, at most once a minute. One that is gone is left alone."""
        raise NotImplementedError

    def list(
        self,
        *,
        limit: int = 20,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        name: str | None = None,
        metadata: Mapping[str, str] = {},
        subject: str | None = None,
    ) -> Page[Memory]:
        """Memories by when they were made; ``after`` is an id. Raises MissingError for an ``after`` that is gone."""
        raise NotImplementedError

    def update(
        self,
        name_or_id: str,
        *,
        name: str | None = _UNSET,
        metadata: Mapping[str, str] = _UNSET,
        expires_after: Expiry | None = _UNSET,
    ) -> Memory:
        """Change what is given. Raises MissingError, ConflictError where the name is taken, StoreError."""
        raise NotImplementedError

    def versions(self, name_or_id: str, *, limit: int = 20, after: int | None = None) -> Page[Version]:
        """Versions, the newest first; ``after`` is a number. Raises MissingError."""
        raise NotImplementedError

    def version(self, name_or_id: str, number: int | None = None) -> Version:
        """A version, or the newest. Raises MissingError, also where nothing was written yet."""
        raise NotImplementedError

    def fetch(self, version: Version) -> Path:
        """A local file with the state, never to be written to. Raises MissingError, CorruptStateError."""
        raise NotImplementedError

    def commit(
        self,
        name_or_id: str,
        file: Path,
        *,
        sha256: str,
        header: Header,
        operation: Operation,
        entry: Mapping[str, Any],
        expected: int | None = None,
        idempotency_key: str | None = None,
    ) -> Version:
        """Make a file the newest version; it is then gone from where it was, and stays there on an error.

        Args:
            sha256: of the file's bytes.
            expected: the version that the memory must have now, 0 where nothing was written; None for any.
            idempotency_key: where a commit with it was done, that one's version is given and nothing is changed.

        Raises MissingError, ConflictError where the version is another, QuotaError.
        """
        raise NotImplementedError

    def replay(self, idempotency_key: str) -> Version | None:
        """The version that a commit with this key has made, within the last day."""
        raise NotImplementedError

    def fork(self, name_or_id: str, new_name: str | None, *, version: int | None = None) -> Memory:
        """A memory that begins as a version of another; no bytes are copied. Raises MissingError, ConflictError."""
        raise NotImplementedError

    def restore(self, name_or_id: str, number: int) -> Version:
        """Make an earlier version the newest once more, under a new number. Raises MissingError."""
        raise NotImplementedError

    def delete_version(self, name_or_id: str, number: int) -> Deleted:
        """Delete an earlier version. Raises MissingError, ConflictError for the newest, which is the memory."""
        raise NotImplementedError

    def delete(self, name_or_id: str) -> Deleted:
        """Delete a memory with all its versions; forks stay. Raises MissingError."""
        raise NotImplementedError

    def erase(self, subject: str) -> Deleted:
        """Delete every memory about a subject, forks too, and all that is left of them. Raises StoreError for ''."""
        raise NotImplementedError

    def usage(self) -> Usage:
        """What this tenant has and may have."""
        raise NotImplementedError

    def audit(self, *, limit: int = 20, after: int | None = None) -> Page[AuditEntry]:
        """What was done, the newest first; ``after`` is an entry's number."""
        raise NotImplementedError
