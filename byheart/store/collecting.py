"""Deleting what nothing refers to any more: objects that no version has, copies, and what killed processes left.

An object is deleted in a transaction that holds its row. A commit takes the same row before it looks whether the object
is there, and stores it once more where it is not, so that no order of the two leaves a version without its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sqlalchemy import and_, delete, exists, select

from byheart.errors import StoreError
from byheart.store import schema
from byheart.store.catalogue import Catalogue
from byheart.store.objects import Objects, is_key, key_hash, object_key, object_prefix
from byheart.store.rows import reading_key, refer
from byheart.store.values import Deleted

_o = schema.objects.c
_unused = ~exists(select(schema.versions.c.number).where(schema.versions.c.object == _o.key))
_AT_ONCE = 500


def collect(catalogue: Catalogue, objects: Objects, keys: Iterable[tuple[str, str]]) -> Deleted:
    """Delete objects that no version has, each given as tenant and key. What cannot be deleted now is ``pending``."""
    found, size, pending = list[str](), 0, 0
    for tenant, key in keys:
        try:
            freed = _collect(catalogue, objects, tenant, key)
        except StoreError:
            freed, pending = 0, pending + 1
        if freed is not None:
            found.append(reading_key(tenant, key_hash(key)))
            size += freed
    return Deleted(bytes=size, keys=tuple(found), pending=pending)


def _collect(catalogue: Catalogue, objects: Objects, tenant: str, key: str) -> int | None:
    """The bytes that were freed; None where a version has the object."""
    with catalogue.writing() as connection:
        refer(connection, tenant, key, 0)
        row = connection.execute(select(schema.objects).where(_o.key == key, _unused)).first()
        if row is None:
            return None
        # The row first: were a version to have the object after all, this would fail, and the bytes would stay.
        connection.execute(delete(schema.objects).where(_o.key == key))
        objects.delete(key)
    return int(row.bytes)


def unused(catalogue: Catalogue, tenant: str | None = None) -> list[tuple[str, str]]:
    """Tenant and key of each object that the catalogue knows and no version has."""
    mine = _unused if tenant is None else and_(_unused, _o.tenant == tenant)
    found = catalogue.read(lambda connection: connection.execute(select(_o.tenant, _o.key).where(mine)).all())
    return [(row.tenant, row.key) for row in found]


def orphans(catalogue: Catalogue, objects: Objects, tenant: str = "", *, before: int) -> Iterator[tuple[str, str]]:
    """Objects that the catalogue does not know, stored before a time (milliseconds): of a tenant, or of all."""
    listed = objects.stored(object_prefix(tenant) if tenant else "")
    old = (key for key, at in listed if at < before and is_key(key))
    while some := list(islice(old, _AT_ONCE)):
        yield from ((tenant, key) for key in _unknown(catalogue, some))


def _unknown(catalogue: Catalogue, keys: Sequence[str]) -> list[str]:
    query = select(_o.key).where(_o.key.in_(keys))
    known = set(catalogue.read(lambda connection: connection.scalars(query).all()))
    return [key for key in keys if key not in known]


def gone(catalogue: Catalogue, keys: Iterable[str]) -> list[str]:
    """Those of the names that ``reading_key`` gives whose objects no version has, deleted yet or not."""
    pairs, found = ((object_key(*key.rsplit(":", 1)), key) for key in keys), list[str]()
    while some := dict(islice(pairs, _AT_ONCE)):
        had = _referred(catalogue, list(some))
        found += [name for key, name in some.items() if key not in had]
    return found


def _referred(catalogue: Catalogue, keys: Sequence[str]) -> set[str]:
    query = select(schema.versions.c.object).where(schema.versions.c.object.in_(keys))
    return set(catalogue.read(lambda connection: connection.scalars(query).all()))


def drop_copies(catalogue: Catalogue, objects: Objects) -> int:
    """Delete copies of objects that the catalogue does not know any more; gives how many."""
    cached, dropped = objects.cached(), 0
    while some := list(islice(cached, _AT_ONCE)):
        for key in _unknown(catalogue, some):
            objects.drop_copy(key)
            dropped += 1
    return dropped
