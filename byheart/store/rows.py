"""Rows of the catalogue as values, and how they are found."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, insert, not_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from byheart.errors import ConflictError, MissingError
from byheart.store import schema
from byheart.store.checks import is_id, require_name
from byheart.store.clock import to_datetime
from byheart.store.values import AuditEntry, Expiry, Memory, Parent, Version

Row = Any
STATE = ("object", "sha256", "bytes", "slots", "tokens", "characters")
"""Columns of ``versions`` that say what state a version has."""
# Of a new memory, in the audit trail: where a list goes on after the memory is gone.
_PLACE = "place"
_m, _v, _a = schema.memories.c, schema.versions.c, schema.audit.c
_DIALECTS: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def new_id() -> str:
    """An id that nobody can guess."""
    return f"mem_{secrets.token_urlsafe(18)}"


def living(now: int) -> ColumnElement[bool]:
    """Which memories have not expired."""
    return or_(_m.expires_at.is_(None), _m.expires_at > now)


def select_memories() -> Select[Any]:
    """Memories, each with its newest version's sizes."""
    newest = schema.memories.outerjoin(schema.versions, and_(_v.memory_id == _m.id, _v.number == _m.version))
    sizes = (_v.bytes, _v.sha256, _v.slots, _v.tokens, _v.characters)
    return select(schema.memories, *sizes).select_from(newest)


def named(tenant: str, name_or_id: str) -> ColumnElement[bool]:
    """The condition for one memory of a tenant. Raises StoreError for what is neither a name nor an id."""
    one = _m.id == name_or_id if is_id(name_or_id) else _m.name == require_name(name_or_id)
    return and_(_m.tenant == tenant, one)


def find(connection: Connection, tenant: str, name_or_id: str, now: int) -> Row:
    """A living memory's row. Raises MissingError."""
    row = connection.execute(select_memories().where(named(tenant, name_or_id), living(now))).first()
    if row is None:
        raise MissingError(f"There is no memory '{name_or_id}'.")
    return row


def find_place(connection: Connection, tenant: str, name_or_id: str, now: int) -> int:
    """Where a memory stands among all, in the order in which they were made. Raises MissingError.

    Of one that is gone the audit trail still tells, by its id.
    """
    try:
        return int(find(connection, tenant, name_or_id, now).sequence)
    except MissingError:
        same = and_(_a.tenant == tenant, _a.memory_id == name_or_id)
        made = connection.execute(select(_a.counts).where(same).order_by(_a.sequence).limit(1)).first()
        if made is None or _PLACE not in made.counts:
            raise
        return int(made.counts[_PLACE])


def lock(connection: Connection, tenant: str, name_or_id: str, now: int) -> Row:
    """A living memory's row, which nobody else changes until this transaction ends. Raises MissingError."""
    wanted = select(_m.id).where(named(tenant, name_or_id)).with_for_update()
    connection.execute(wanted)
    return find(connection, tenant, name_or_id, now)


def require_version(memory: Row, expected: int | None) -> None:
    """Raise ConflictError unless a memory has the version that is expected; None is any."""
    if expected not in (None, memory.version):
        raise ConflictError(
            f"Memory '{memory.name or memory.id}' has version {memory.version} now, not {expected}: somebody else "
            "changed it; read it again, and write once more."
        )


def find_version(connection: Connection, memory: Row, number: int | None) -> Row:
    """A version's row; the newest without a number. Raises MissingError."""
    wanted = memory.version if number is None else number
    same = and_(_v.memory_id == memory.id, _v.number == wanted)
    row = connection.execute(select(schema.versions).where(same)).first()
    if row is None:
        called = memory.name or memory.id
        if memory.version == 0:
            raise MissingError(f"Nothing has been written into memory '{called}' yet.")
        raise MissingError(f"Memory '{called}' has no version {wanted}; its newest is {memory.version}.")
    return row


def refer(connection: Connection, tenant: str, key: str, size: int) -> None:
    """Lock an object's row, made where there is none, until this transaction ends.

    Whoever deletes the object holds the same lock, so afterwards it is there or it is not.
    """
    made = _DIALECTS[connection.dialect.name](schema.objects).values(key=key, tenant=tenant, bytes=size)
    connection.execute(made.on_conflict_do_update(index_elements=["key"], set_={"bytes": schema.objects.c.bytes}))


def insert_memory(connection: Connection, now: int, expiry: Expiry | None, action: str, **values: Any) -> str:
    """Add a memory, made by ``action``; gives its id. Raises ConflictError where a living memory has the name."""
    tenant = values["tenant"]
    if values["name"] is not None:
        make_free(connection, tenant, values["name"], now)
    id = new_id()
    ages = {"created_at": now, "last_active_at": now, **expiry_columns(expiry, now, now)}
    connection.execute(insert(schema.memories).values(id=id, version=0, **ages, **values))
    place = connection.execute(select(_m.sequence).where(_m.id == id)).scalar_one()
    record(connection, tenant, now, action, id, **{_PLACE: place})
    return id


def make_free(connection: Connection, tenant: str, name: str, now: int) -> None:
    """Raise ConflictError where a living memory has the name."""
    # One that has expired makes room; the next sweep deletes its bytes.
    connection.execute(delete(schema.memories).where(named(tenant, name), not_(living(now))))
    if connection.scalar(select(_m.id).where(named(tenant, name))) is not None:
        raise ConflictError(f"There is a memory '{name}' already; choose another name, or forget it first.")


def expiry_columns(expiry: Expiry | None, created_at: int, last_active_at: int) -> dict[str, Any]:
    """The columns that say when a memory goes."""
    if expiry is None:
        return {"expires_anchor": None, "expires_seconds": None, "expires_at": None}
    start = created_at if expiry.anchor == "created_at" else last_active_at
    at = start + expiry.seconds * 1000
    return {"expires_anchor": expiry.anchor, "expires_seconds": expiry.seconds, "expires_at": at}


def use(connection: Connection, memory: Row, now: int, **values: Any) -> int:
    """Note that a memory is used now, and set columns; gives the time, which for one memory never goes back."""
    at = max(now, int(memory.last_active_at))
    expiry = to_expiry(memory)
    if expiry is not None:
        values |= expiry_columns(expiry, memory.created_at, at)
    connection.execute(update(schema.memories).where(_m.id == memory.id).values(last_active_at=at, **values))
    return at


def insert_version(connection: Connection, memory: Row, now: int, state: Mapping[str, Any], **made: Any) -> Row:
    """Add a version, which is then the newest; gives its row.

    Args:
        state: the columns that say what state it has: ``STATE``, and of the memory ``method`` and ``options``.
        made: ``operation`` and ``entry``.
    """
    number = memory.version + 1
    mine = {name: state[name] for name in ("method", "options") if name in state}
    at = use(connection, memory, now, version=number, **mine)
    of_state = {name: state[name] for name in STATE}
    connection.execute(
        insert(schema.versions).values(memory_id=memory.id, number=number, created_at=at, **of_state, **made)
    )
    same = and_(_v.memory_id == memory.id, _v.number == number)
    return connection.execute(select(schema.versions).where(same)).one()


def record(
    connection: Connection,
    tenant: str,
    at: int,
    action: str,
    memory_id: str | None = None,
    version: int | None = None,
    **counts: int,
) -> None:
    """Add to the audit trail."""
    values = {"tenant": tenant, "at": at, "action": action, "memory_id": memory_id, "version": version}
    connection.execute(insert(schema.audit).values(**values, counts=counts))


def to_memory(row: Row) -> Memory:
    """A row of ``select_memories``."""
    return Memory(
        id=row.id,
        name=row.name,
        model=row.model,
        method=row.method,
        options=row.options,
        metadata=row.metadata,
        subject=row.subject,
        version=row.version,
        created_at=to_datetime(row.created_at),
        last_active_at=to_datetime(row.last_active_at),
        expires_at=None if row.expires_at is None else to_datetime(row.expires_at),
        expires_after=to_expiry(row),
        bytes=row.bytes or 0,
        sha256=row.sha256 or "",
        slots=row.slots or 0,
        tokens=row.tokens or 0,
        characters=row.characters or 0,
        parent=None if row.parent_id is None else Parent(row.parent_id, row.parent_version),
    )


def to_expiry(row: Row) -> Expiry | None:
    """When a memory of this row goes."""
    return None if row.expires_seconds is None else Expiry(row.expires_seconds, row.expires_anchor)


def to_version(row: Row, tenant: str) -> Version:
    """A row of ``versions``."""
    return Version(
        memory_id=row.memory_id,
        number=row.number,
        sha256=row.sha256,
        bytes=row.bytes,
        operation=row.operation,
        created_at=to_datetime(row.created_at),
        slots=row.slots,
        tokens=row.tokens,
        characters=row.characters,
        entry=row.entry,
        key=reading_key(tenant, row.sha256),
    )


def reading_key(tenant: str, sha256: str) -> str:
    """The name under which a state is kept in memory by an engine."""
    return f"{tenant}:{sha256}"


def to_audit_entry(row: Row) -> AuditEntry:
    """A row of ``audit``."""
    counts = {name: count for name, count in row.counts.items() if name != _PLACE}
    return AuditEntry(row.sequence, to_datetime(row.at), row.action, row.memory_id, row.version, counts)
