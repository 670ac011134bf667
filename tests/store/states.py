"""Made up for tests of the store, to which a state file is bytes and a header."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from byheart.protocol.state import Header, Written
from byheart.store.tenant import TenantMemories
from byheart.store.values import Version

AT = "2026-01-01T00:00:00+00:00"


class StateFile(NamedTuple):
    path: Path
    sha256: str
    header: Header


def make_state(folder: Path, *sources: str, fill: int = 0) -> StateFile:
    """What stands for a state in which some texts of 5 tokens were written; others with another ``fill``."""
    header = Header("window", {"recent": 7}, "b", "t", "a", "tiny", slots=len(sources))
    for source in sources:
        header = header.with_written(Written(source, AT, 5, 20))
    content = repr((sources, fill)).encode() * 40
    digest = hashlib.sha256(content).hexdigest()
    path = folder / f"{digest[:8]}.safetensors"
    path.write_bytes(content)
    return StateFile(path, digest, header)


def commit(mine: TenantMemories, name: str, folder: Path, *sources: str, fill: int = 0, **more: Any) -> Version:
    """Write such a state into a memory."""
    path, sha256, header = make_state(folder, *sources, fill=fill)
    entry = {"source": sources[-1]} if sources else {}
    given: dict[str, Any] = {"sha256": sha256, "header": header, "operation": "write", "entry": entry, **more}
    return mine.commit(name, path, **given)
