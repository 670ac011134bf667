"""What a tenant has, and whether it may have more."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

from byheart.errors import QuotaError
from byheart.store import schema
from byheart.store.values import Quota, Usage

_INSERT: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def usage(connection: Connection, tenant: str, quota: Quota) -> Usage:
    """What a tenant has; bytes are those stored."""
    memories, objects = schema.memories.c, schema.objects.c
    count = connection.scalar(select(func.count()).where(memories.tenant == tenant))
    size = connection.scalar(select(func.coalesce(func.sum(objects.bytes), 0)).where(objects.tenant == tenant))
    return Usage(int(count or 0), int(size or 0), quota)


def require_within(connection: Connection, tenant: str, quota: Quota) -> None:
    """Raise QuotaError where a tenant now has more than it may; the transaction is then given up.

    Of one tenant, transactions that ask this wait for one another: two that each fit do not add up to too much.
    """
    if quota == Quota():
        return
    row = _INSERT[connection.dialect.name](schema.tenants).values(tenant=tenant)
    connection.execute(row.on_conflict_do_update(index_elements=["tenant"], set_={"tenant": tenant}))
    now = usage(connection, tenant, quota)
    for what, has, most in (("memories", now.memories, quota.memories), ("bytes", now.bytes, quota.bytes)):
        if most is not None and has > most:
            raise QuotaError(
                f"There would be {has:,} {what}, and there may be {most:,}; forget some, or ask who runs the server "
                "for more."
            )
