"""The memories of one tenant: making, finding, listing, writing and deleting them.

A write stores its object first and then commits, in one transaction, a version that refers to it; what is deleted goes
the other way round. Versions are ordered by number, since a clock may jump.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Select, delete, select, update

from byheart.errors import ConflictError, CorruptStateError, MissingError, StoreError
from byheart.protocol.state import Header
from byheart.store import checks, deleting, rows, schema
from byheart.store.catalogue import Catalogue
from byheart.store.clock import Clock
from byheart.store.committing import NewVersion, commit, replay
from byheart.store.objects import Objects
from byheart.store.quota import require_within, usage
from byheart.store.rows import Row, record, to_memory, to_version
from byheart.store.values import AuditEntry, Deleted, Expiry, Memory, Operation, Page, Quota, Usage, Version

_m, _v, _a = schema.memories.c, schema.versions.c, schema.audit.c
_MINUTE = 60_000
_KEPT: Any = object()


class TenantMemories:
    """The memories of one tenant; it sees no others. ``Memories.of`` makes it."""

    def __init__(
        self,
        catalogue: Catalogue,
        objects: Objects,
        clock: Clock,
        tenant: str,
        quota: Quota,
        models: Mapping[str, str] = {},
    ) -> None:
        self.tenant = tenant
        self._models = models
        self._catalogue = catalogue
        self._objects = objects
        self._clock = clock
        self._quota = quota

    # ---- making and finding ----

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
        values = {
            "tenant": self.tenant,
            "name": None if name is None else checks.require_name(name),
            "model": checks.require_text("model", model, longest=4096),
            "method": None if method is None else checks.require_text("method", method, longest=4096),
            "options": checks.require_options(options),
            "metadata": checks.require_metadata(metadata),
            "subject": checks.require_text("subject", subject),
        }
        return self._add(checks.require_expiry(expires_after), "create", values)

    def _add(self, expiry: Expiry | None, action: str, values: dict[str, Any]) -> Memory:
        now = self._clock()
        with self._catalogue.writing() as connection:
            id = rows.insert_memory(connection, now, expiry, action, **values)
            require_within(connection, self.tenant, self._quota)
            return self._memory(rows.find(connection, self.tenant, id, now))

    def get(self, name_or_id: str) -> Memory:
        """A memory, which is not thereby used. Raises MissingError."""
        return self._memory(self._find(name_or_id))

    def _memory(self, row: Row) -> Memory:
        memory = to_memory(row)
        return replace(memory, model=self._models.get(memory.model, memory.model))

    def _find(self, name_or_id: str) -> Row:
        return self._catalogue.read(lambda connection: rows.find(connection, self.tenant, name_or_id, self._clock()))

    def touch(self, id: str) -> None:
        """Note that a memory is in use, at most once a minute. One that is gone is left alone."""
        now = self._clock()
        try:
            found = self._find(id)
            if now - found.last_active_at < _MINUTE:
                return
            with self._catalogue.writing() as connection:
                rows.use(connection, rows.lock(connection, self.tenant, id, now), now)
        except MissingError:
            return

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
        """Memories by when they were made; ``after`` is a name, or an id, also of one that is gone meanwhile.

        Raises MissingError where there never was such a memory, and where a name is gone.
        """
        query = rows.select_memories().where(_m.tenant == self.tenant, rows.living(self._clock()))
        if name is not None:
            query = query.where(_m.name == checks.require_name(name))
        if subject is not None:
            query = query.where(_m.subject == checks.require_text("subject", subject))
        for key, value in checks.require_metadata(metadata).items():
            query = query.where(_m.metadata[key].as_string() == value)
        if after is not None:
            at = (self.tenant, after, self._clock())
            place = self._catalogue.read(lambda connection: rows.find_place(connection, *at))
            query = query.where(_m.sequence < place if order == "desc" else _m.sequence > place)
        found, more = self._page(query.order_by(_m.sequence.desc() if order == "desc" else _m.sequence), limit)
        return Page(tuple(map(self._memory, found)), more)

    def _page(self, query: Select[Any], limit: int) -> tuple[Sequence[Row], bool]:
        """The first rows of a query, and whether there are more."""
        one_more = query.limit(checks.require_limit(limit) + 1)
        found = self._catalogue.read(lambda connection: connection.execute(one_more).all())
        return found[:limit], len(found) > limit

    def update(
        self,
        name_or_id: str,
        *,
        name: str | None = _KEPT,
        metadata: Mapping[str, str] = _KEPT,
        expires_after: Expiry | None = _KEPT,
    ) -> Memory:
        """Change what is given. Raises MissingError, ConflictError where the name is taken, StoreError."""
        changes: dict[str, Any] = {}
        if name is not _KEPT:
            changes["name"] = None if name is None else checks.require_name(name)
        if metadata is not _KEPT:
            changes["metadata"] = checks.require_metadata(metadata)
        now = self._clock()
        with self._catalogue.writing() as connection:
            memory = rows.lock(connection, self.tenant, name_or_id, now)
            if changes.get("name") not in (None, memory.name):
                rows.make_free(connection, self.tenant, changes["name"], now)
            if expires_after is not _KEPT:
                expiry = checks.require_expiry(expires_after)
                changes |= rows.expiry_columns(expiry, memory.created_at, memory.last_active_at)
                if (changes["expires_at"] or now) < now:
                    raise StoreError("It would have expired by now; give more seconds, or delete it.")
            if changes:
                connection.execute(update(schema.memories).where(_m.id == memory.id).values(**changes))
            record(connection, self.tenant, now, "update", memory.id)
            return self._memory(rows.find(connection, self.tenant, memory.id, now))

    # ---- versions ----

    def versions(self, name_or_id: str, *, limit: int = 20, after: int | None = None) -> Page[Version]:
        """Versions, the newest first; ``after`` is a number. Raises MissingError."""
        query = select(schema.versions).where(_v.memory_id == self._find(name_or_id).id)
        query = query if after is None else query.where(_v.number < after)
        found, more = self._page(query.order_by(_v.number.desc()), limit)
        return Page(tuple(to_version(row, self.tenant) for row in found), more)

    def version(self, name_or_id: str, number: int | None = None) -> Version:
        """A version, or the newest. Raises MissingError, also where nothing was written yet."""

        def query(connection: Connection) -> Row:
            memory = rows.find(connection, self.tenant, name_or_id, self._clock())
            return rows.find_version(connection, memory, number)

        return to_version(self._catalogue.read(query), self.tenant)

    def fetch(self, version: Version) -> Path:
        """A local file with the state, never to be written to. Raises MissingError, CorruptStateError."""
        key = self._object_of(version)
        path = self._objects.fetch(key)
        try:
            # It may have been deleted while it was being fetched.
            self._object_of(version)
        except MissingError:
            self._objects.drop_copy(key)
            raise
        if path is None:
            raise CorruptStateError(
                f"Version {version.number} of memory '{version.memory_id}' has lost its file, object '{key}'; restore "
                "that from a back-up, or restore an earlier version."
            )
        return path

    def _object_of(self, version: Version) -> str:
        return self._catalogue.read(
            lambda connection: str(
                rows.find_version(
                    connection, rows.find(connection, self.tenant, version.memory_id, self._clock()), version.number
                ).object
            )
        )

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
            idempotency_key: where a commit with it was done within a day, that one's version is given.

        Raises MissingError, ConflictError where the version is another, QuotaError.
        """
        new = NewVersion(file, sha256, header, operation, entry, expected, idempotency_key)
        made = commit(self._catalogue, self._objects, self.tenant, name_or_id, new, self._quota, self._clock)
        return to_version(made, self.tenant)

    def replay(self, idempotency_key: str) -> Version | None:
        """The version that a commit with this key has made, within the last day."""
        found = self._catalogue.read(lambda connection: replay(connection, self.tenant, idempotency_key))
        return None if found is None else to_version(found, self.tenant)

    def fork(self, name_or_id: str, new_name: str | None, *, version: int | None = None) -> Memory:
        """A memory that begins as a version of another; no bytes are copied. Raises MissingError, ConflictError.

        It has the subject, the metadata and the expiry of the other.
        """
        now, kept = self._clock(), ("tenant", "subject", "model", "method", "options", "metadata")
        name = None if new_name is None else checks.require_name(new_name)
        with self._catalogue.writing() as connection:
            source = rows.lock(connection, self.tenant, name_or_id, now)
            empty = source.version == 0 and version in (None, 0)
            state = None if empty else rows.find_version(connection, source, version)
            values = {column: source._mapping[column] for column in kept}
            parent = {"parent_id": source.id, "parent_version": 0 if state is None else state.number}
            id = rows.insert_memory(connection, now, rows.to_expiry(source), "fork", name=name, **parent, **values)
            require_within(connection, self.tenant, self._quota)
            if state is not None:
                new = rows.find(connection, self.tenant, id, now)
                entry = {"memory": source.id, "version": state.number}
                rows.insert_version(connection, new, now, state._mapping, operation="fork", entry=entry)
            return self._memory(rows.find(connection, self.tenant, id, now))

    def restore(self, name_or_id: str, number: int) -> Version:
        """Make an earlier version the newest once more, under a new number. Raises MissingError."""
        now = self._clock()
        with self._catalogue.writing() as connection:
            memory = rows.lock(connection, self.tenant, name_or_id, now)
            state = rows.find_version(connection, memory, number)._mapping
            entry = {"version": number}
            made = rows.insert_version(connection, memory, now, state, operation="restore", entry=entry)
            record(connection, self.tenant, now, "restore", memory.id, made.number)
        return to_version(made, self.tenant)

    # ---- deleting ----

    def delete_version(self, name_or_id: str, number: int) -> Deleted:
        """Delete an earlier version. Raises MissingError, ConflictError for the newest, which is the memory."""
        now = self._clock()
        with self._catalogue.writing() as connection:
            memory = rows.lock(connection, self.tenant, name_or_id, now)
            found = rows.find_version(connection, memory, number)
            if number == memory.version:
                raise ConflictError(
                    f"Version {number} is what the memory is now; restore an earlier one first, or forget the memory."
                )
            for table in (schema.versions, schema.idempotency):
                # A request that comes again after this writes again.
                same = (table.c.memory_id == memory.id) & (table.c.number == number)
                connection.execute(delete(table).where(same))
            record(connection, self.tenant, now, "delete_version", memory.id, number, versions=1)
        return deleting.collect_after(self._catalogue, self._objects, self.tenant, [found.object], versions=1)

    def delete(self, name_or_id: str, *, expected: int | None = None) -> Deleted:
        """Delete a memory with all its versions; forks stay.

        Args:
            expected: the version that it must have now, 0 where nothing was written; None for any.

        Raises MissingError, ConflictError where the version is another.
        """
        now = self._clock()
        with self._catalogue.writing() as connection:
            memory = rows.lock(connection, self.tenant, name_or_id, now)
            rows.require_version(memory, expected)
            objects, versions = deleting.delete_memories(connection, [memory.id])
            record(connection, self.tenant, now, "delete", memory.id, memories=1, versions=versions)
        return deleting.collect_after(
            self._catalogue, self._objects, self.tenant, objects, memories=1, versions=versions
        )

    def erase(self, subject: str) -> Deleted:
        """Delete every memory about a subject, forks too, and all that is left of them.

        Where ``pending`` is above 0, or an UnavailableError is raised, the same call once more does the rest.
        Raises StoreError for an empty subject, which would mean all memories that have none.
        """
        if not checks.require_text("subject", subject):
            raise StoreError("Say whose memories are to be erased: the subject is empty.")
        return deleting.erase(self._catalogue, self._objects, self.tenant, subject, self._clock())

    # ---- what there is ----

    def usage(self) -> Usage:
        """What this tenant has and may have."""
        return self._catalogue.read(lambda connection: usage(connection, self.tenant, self._quota))

    def audit(self, *, limit: int = 20, after: int | None = None) -> Page[AuditEntry]:
        """What was done, the newest first; ``after`` is an entry's number."""
        query = select(schema.audit).where(_a.tenant == self.tenant)
        query = query if after is None else query.where(_a.sequence < after)
        found, more = self._page(query.order_by(_a.sequence.desc()), limit)
        return Page(tuple(map(rows.to_audit_entry, found)), more)
