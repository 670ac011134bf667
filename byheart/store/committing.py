"""A state file becomes the newest version of a memory: the object first, then one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, and_, insert, select

from byheart.errors import ConflictError, StoreError, UnavailableError
from byheart.protocol.state import Header
from byheart.store import rows, schema
from byheart.store.catalogue import Catalogue
from byheart.store.clock import Clock
from byheart.store.collecting import collect
from byheart.store.objects import Objects, is_key, object_key, reaching
from byheart.store.quota import require_within
from byheart.store.rows import Row
from byheart.store.values import Operation, Quota


@dataclass(frozen=True)
class NewVersion:
    """What ``TenantMemories.commit`` is given."""

    file: Path
    sha256: str
    header: Header
    operation: Operation
    entry: Mapping[str, Any]
    expected: int | None
    idempotency_key: str | None


def commit(
    catalogue: Catalogue,
    objects: Objects,
    tenant: str,
    name_or_id: str,
    new: NewVersion,
    quota: Quota,
    clock: Clock,
) -> Row:
    """The row of the version that was made, durably. Raises as ``TenantMemories.commit`` does."""
    key = object_key(tenant, new.sha256)
    if not is_key(key):
        raise StoreError(f"'{new.sha256[:100]}' is no SHA-256 in hexadecimal digits.")
    # Most conflicts are found before anything is stored.
    done = catalogue.read(lambda connection: _begin(connection, tenant, name_or_id, new, clock()))
    if done is None:
        done = _store(catalogue, objects, tenant, key, name_or_id, new, quota, clock)
    # It is there for certain; a file that stays is swept.
    with suppress(OSError):
        new.file.unlink()
    return done


def _begin(connection: Connection, tenant: str, name_or_id: str, new: NewVersion, now: int) -> Row | None:
    """The version that was made before with the same idempotency key. Raises ConflictError, MissingError."""
    memory = rows.find(connection, tenant, name_or_id, now)
    done = None if new.idempotency_key is None else replay(connection, tenant, new.idempotency_key)
    if done is not None and done.memory_id != memory.id:
        raise ConflictError("The idempotency key was used for another memory; every write needs one of its own.")
    if done is None:
        rows.require_version(memory, new.expected)
    return done


def _store(
    catalogue: Catalogue,
    objects: Objects,
    tenant: str,
    key: str,
    name_or_id: str,
    new: NewVersion,
    quota: Quota,
    clock: Clock,
) -> Row:
    try:
        objects.put(key, new.file)
        with catalogue.writing() as connection:
            now = clock()
            memory = rows.lock(connection, tenant, name_or_id, now)
            done = _begin(connection, tenant, name_or_id, new, now)
            if done is None:
                _refer(connection, objects, tenant, key, new.file)
                done = _insert(connection, tenant, key, memory, new, now)
                require_within(connection, tenant, quota)
            return done
    except BaseException as error:
        # Nobody else may come to delete what is not referred to; where a version has it after all, it stays.
        collect(catalogue, objects, [(tenant, key)])
        made = (
            _find_made(catalogue, tenant, key, name_or_id, new, clock) if isinstance(error, UnavailableError) else None
        )
        if made is None:
            raise
        return made


def _find_made(
    catalogue: Catalogue, tenant: str, key: str, name_or_id: str, new: NewVersion, clock: Clock
) -> Row | None:
    """The version of a commit whose answer was lost on the way."""
    if new.expected is None:
        return None
    with suppress(StoreError):
        memory = catalogue.read(lambda connection: rows.find(connection, tenant, name_or_id, clock()))
        found = catalogue.read(lambda connection: rows.find_version(connection, memory, (new.expected or 0) + 1))
        return found if found.object == key else None
    return None


def _refer(connection: Connection, objects: Objects, tenant: str, key: str, file: Path) -> None:
    with reaching(file):
        size = file.stat().st_size
    rows.refer(connection, tenant, key, size)
    if not objects.has(key):
        # An equal one was there when this was stored, and was deleted since.
        objects.put(key, file)


def _insert(connection: Connection, tenant: str, key: str, memory: Row, new: NewVersion, now: int) -> Row:
    header = new.header
    size = connection.scalar(select(schema.objects.c.bytes).where(schema.objects.c.key == key))
    state = {
        "object": key,
        "sha256": new.sha256,
        "bytes": size,
        "slots": header.slots,
        "tokens": header.tokens,
        "characters": header.characters,
        "method": header.method,
        "options": header.options,
    }
    made = rows.insert_version(connection, memory, now, state, operation=new.operation, entry=dict(new.entry))
    if new.idempotency_key is not None:
        mark = {"memory_id": memory.id, "number": made.number, "at": now}
        connection.execute(insert(schema.idempotency).values(tenant=tenant, key=_hash(new.idempotency_key), **mark))
    rows.record(connection, tenant, now, new.operation, memory.id, made.number)
    return made


def replay(connection: Connection, tenant: str, idempotency_key: str) -> Row | None:
    """The version that a commit with this key has made; None where it is not known, or its version was deleted."""
    key, version = schema.idempotency.c, schema.versions.c
    same = and_(version.memory_id == key.memory_id, version.number == key.number)
    both = schema.idempotency.join(schema.versions, same)
    query = select(schema.versions).select_from(both)
    return connection.execute(query.where(key.tenant == tenant, key.key == _hash(idempotency_key))).first()


def _hash(idempotency_key: str) -> str:
    # Clients make keys of anything; none of it is kept.
    return hashlib.sha256(idempotency_key.encode("utf-8", "surrogatepass")).hexdigest()
