"""The tables of the catalogue, the same in SQLite and PostgreSQL.

A version names its object by a foreign key, so no object's row can go while a version has it; what a memory had goes
with its row. Times are milliseconds since 1970 (UTC).
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    insert,
    select,
    text,
)

from byheart.errors import StoreError

SCHEMA = 1
tables = MetaData()
# A sequence that SQLite counts upward for ever: what is deleted leaves its number unused.
_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")

about = Table("byheart", tables, Column("schema", Integer, primary_key=True))
tenants = Table("tenants", tables, Column("tenant", String(255), primary_key=True))
memories = Table(
    "memories",
    tables,
    Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("id", String(40), nullable=False, unique=True),
    Column("tenant", String(255), nullable=False),
    Column("name", String(255)),
    Column("subject", String(255), nullable=False),
    Column("model", String(4096), nullable=False),
    Column("method", String(4096)),
    Column("options", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("last_active_at", BigInteger, nullable=False),
    Column("expires_anchor", String(20)),
    Column("expires_seconds", BigInteger),
    Column("expires_at", BigInteger),
    Column("parent_id", String(40)),
    Column("parent_version", Integer),
    UniqueConstraint("tenant", "name"),
    Index("memories_of_subject", "tenant", "subject"),
    Index("memories_expire", "expires_at"),
    sqlite_autoincrement=True,
)
objects = Table(
    "objects",
    tables,
    Column("key", String(255), primary_key=True),
    Column("tenant", String(255), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
)
versions = Table(
    "versions",
    tables,
    Column("memory_id", ForeignKey(memories.c.id, ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("object", ForeignKey(objects.c.key), nullable=False, index=True),
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("operation", String(20), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("slots", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("characters", BigInteger, nullable=False),
    Column("entry", JSON, nullable=False),
)
idempotency = Table(
    "idempotency",
    tables,
    Column("tenant", String(255), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("memory_id", ForeignKey(memories.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
)
audit = Table(
    "audit",
    tables,
    Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("tenant", String(255), nullable=False, index=True),
    Column("at", BigInteger, nullable=False),
    Column("action", String(20), nullable=False),
    Column("memory_id", String(40)),
    Column("version", Integer),
    Column("counts", JSON, nullable=False),
    Index("audit_of_memory", "tenant", "memory_id"),
    sqlite_autoincrement=True,
)


def prepare(connection: Connection) -> None:
    """Make the tables where there are none. Raises StoreError for those of a later byheart."""
    if connection.dialect.name == "postgresql":
        # Two servers that start at once would both find no tables.
        connection.execute(text("SELECT pg_advisory_xact_lock(6276686561727401)"))
    tables.create_all(connection)
    for index in audit.indexes:
        # An index that tables of an earlier byheart lack.
        index.create(connection, checkfirst=True)
    found = connection.scalar(select(about.c.schema))
    if found is None:
        connection.execute(insert(about).values(schema=SCHEMA))
    elif found > SCHEMA:
        raise StoreError(
            f"The catalogue has schema {found}, which a later byheart has made; this one knows schema {SCHEMA}. "
            "Install that byheart, or take another catalogue."
        )
