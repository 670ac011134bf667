"""A memory of the store as one JSON object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byheart.store.folder import Entry


def summarise(entry: Entry) -> dict[str, Any]:
    """What a memory is and holds; of a damaged one, its problem."""
    file = {"name": entry.name, "path": str(entry.path), "bytes": entry.bytes}
    header = entry.header
    if header is None:
        return {**file, "problem": entry.problem}
    counts = {"texts": len(header.written), "tokens": header.tokens, "characters": header.characters}
    last_written = header.written[-1].at if header.written else None
    return {**file, "method": header.method, "model": header.model, **counts, "last_written": last_written}
