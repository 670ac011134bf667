"""Memories of many users: a catalogue in SQL, state files as objects.

Every method may be called from any thread, and raises UnavailableError where the catalogue or the objects cannot be
reached: nothing that was acknowledged is lost then, and the next call tries again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from sqlalchemy import delete, not_, select

from byheart.errors import UsageError
from byheart.store import clock as clocks, schema
from byheart.store.catalogue import Catalogue
from byheart.store.checks import require_text
from byheart.store.collecting import collect, drop_copies, gone, orphans, unused
from byheart.store.homes import CATALOGUE
from byheart.store.objects import open_objects, reaching
from byheart.store.rows import living, record
from byheart.store.tenant import TenantMemories as TenantMemories
from byheart.store.values import Quota, Swept

HOUR = 3_600_000
_DAY = 24 * HOUR
_NONE = Quota()


class Memories:
    """All tenants' memories.

    Args:
        catalogue: ``sqlite:///PATH``, a path, or ``postgresql+psycopg://...``.
        objects: a folder, or ``s3://``, ``gs://``, ``az://...``.
        cache: a folder for copies of objects that are elsewhere; the user's cache folder without it.
        cache_bytes: what these may take after a sweep.
        clock: gives milliseconds since 1970.
        models: the name that a memory's model was written with -> what it is called here, where that differs.

    Raises UsageError for what is no such address, UnavailableError, StoreError for a catalogue of a later byheart.
    """

    def __init__(
        self,
        catalogue: str | Path,
        objects: str,
        *,
        cache: Path | None = None,
        cache_bytes: int = 20 << 30,
        clock: clocks.Clock = clocks.now,
        models: Mapping[str, str] = {},
    ) -> None:
        self.objects = open_objects(objects, cache)
        self.catalogue = Catalogue(catalogue)
        self._clock = clock
        self.cache_bytes = cache_bytes
        self.models = models

    @classmethod
    def at(cls, home: Path) -> Memories:
        """Those of a folder: HOME/byheart.sqlite3 and HOME/objects."""
        with reaching(home):
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(home / CATALOGUE, str(home / "objects"))

    @property
    def scratch(self) -> Path:
        """A folder of this process for state files that are about to be committed.

        It is gone once the process is, and its file system that of the objects, where these are files.
        """
        with reaching("scratch files"):
            return self.objects.scratch.folder

    def of(self, tenant: str, quota: Quota = _NONE) -> TenantMemories:
        """Those of one tenant. Raises StoreError, UsageError for what cannot be a tenant."""
        if not require_text("A tenant's name", tenant):
            raise UsageError("A tenant must have a name.")
        return TenantMemories(self.catalogue, self.objects, self._clock, tenant, quota, self.models)

    def check(self) -> None:
        """Raise UnavailableError unless the catalogue and the objects answer."""
        self.catalogue.check()
        self.objects.check()

    def sweep(self) -> Swept:
        """Delete expired memories, objects that no version has, and what processes left that are gone.

        Objects that were stored less than an hour ago may be about to be committed, and stay.
        """
        now = self._clock()
        memories = self._delete_expired(now)
        found = collect(self.catalogue, self.objects, unused(self.catalogue))
        left = collect(self.catalogue, self.objects, orphans(self.catalogue, self.objects, before=now - HOUR))
        files = self.sweep_scratch() + drop_copies(self.catalogue, self.objects) + self.objects.trim(self.cache_bytes)
        return Swept(
            memories=memories,
            objects=len(found.keys) + len(left.keys) - found.pending - left.pending,
            bytes=found.bytes + left.bytes,
            files=files,
            keys=found.keys,
            pending=found.pending + left.pending,
        )

    def _delete_expired(self, now: int) -> int:
        table, at = schema.memories.c, schema.idempotency.c.at
        with self.catalogue.writing() as connection:
            connection.execute(delete(schema.idempotency).where(at < now - _DAY))
            expired = connection.execute(
                select(table.id, table.tenant).where(not_(living(now))).with_for_update()
            ).all()
            for row in expired:
                connection.execute(delete(schema.memories).where(table.id == row.id))
                record(connection, row.tenant, now, "expire", row.id, memories=1)
        return len(expired)

    def gone(self, keys: Iterable[str]) -> list[str]:
        """Those of some ``Version.key`` that no version has any more, also where another process has deleted them."""
        return gone(self.catalogue, keys)

    def sweep_scratch(self) -> int:
        """Delete what processes left that are gone; gives how many files."""
        with reaching("scratch files"):
            return self.objects.scratch.sweep()

    def purge(self) -> None:
        """Leave nothing of deleted rows in SQLite's files."""
        self.catalogue.purge()

    def close(self) -> None:
        """Let go of all connections."""
        self.catalogue.close()
        self.objects.scratch.close()
