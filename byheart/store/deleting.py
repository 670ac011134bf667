"""Memories, and all that is left of them, go: the rows first, then the bytes that nothing else refers to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sqlalchemy import Connection, delete, func, select

from byheart.store import schema
from byheart.store.catalogue import Catalogue
from byheart.store.collecting import collect, drop_copies, orphans, unused
from byheart.store.objects import Objects, reaching
from byheart.store.rows import record
from byheart.store.values import Deleted

_m, _v = schema.memories.c, schema.versions.c
_AT_ONCE = 200


def delete_memories(connection: Connection, ids: Sequence[str]) -> tuple[list[str], int]:
    """Delete locked memories' rows; gives the objects that their versions had, and how many versions there were."""
    mine = _v.memory_id.in_(ids)
    objects = list(connection.scalars(select(_v.object).where(mine).distinct()).all())
    versions = connection.scalar(select(func.count()).where(mine))
    connection.execute(delete(schema.memories).where(_m.id.in_(ids)))
    return objects, int(versions or 0)


def collect_after(
    catalogue: Catalogue, objects: Objects, tenant: str, keys: Iterable[str], *, memories: int = 0, versions: int = 0
) -> Deleted:
    """Delete the objects that only deleted versions had."""
    found = collect(catalogue, objects, [(tenant, key) for key in keys])
    return replace(found, memories=memories, versions=versions)


def erase(catalogue: Catalogue, objects: Objects, tenant: str, subject: str, now: int) -> Deleted:
    """Delete a subject's memories, and all that nothing of this tenant refers to."""
    memories = versions = 0
    # Again until there are none: a fork may have been made while the first ones were waited for.
    while some := _erase_some(catalogue, tenant, subject, now):
        memories += some[0]
        versions += some[1]
    found = collect(catalogue, objects, unused(catalogue, tenant))
    # What writers have stored and not committed, killed ones for instance; one at work stores it again.
    left = collect(catalogue, objects, orphans(catalogue, objects, tenant, before=1 << 62))
    with reaching("scratch files"):
        objects.scratch.sweep()
    drop_copies(catalogue, objects)
    catalogue.purge()
    size, keys, pending = found.bytes + left.bytes, found.keys + left.keys, found.pending + left.pending
    return Deleted(memories, versions, size, keys, pending)


def _erase_some(catalogue: Catalogue, tenant: str, subject: str, now: int) -> tuple[int, int] | None:
    about = select(_m.id).where(_m.tenant == tenant, _m.subject == subject).order_by(_m.sequence).limit(_AT_ONCE)
    with catalogue.writing() as connection:
        ids = list(connection.scalars(about.with_for_update()).all())
        if not ids:
            return None
        _, versions = delete_memories(connection, ids)
        record(connection, tenant, now, "erase", memories=len(ids), versions=versions)
    return len(ids), versions
