"""A whole server on a tiny model, on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from byheart.model.backbone import Backbone
from byheart.serving.engine import LocalEngine
from byheart.serving.http.accounts import Accounts, make_key
from byheart.serving.http.app import create_app
from byheart.store.memories import Memories
from tests.serving.live import serving


@contextmanager
def serving_tiny(backbone: Backbone, home: Path) -> Iterator[tuple[str, str]]:
    """Before: nothing listens. Inside: a server's address, and a key. After: it is stopped."""
    key, memories = make_key(home / "keys.jsonl", "alice"), Memories.at(home)
    engine = LocalEngine({"tiny": backbone}, max_resident=1 << 28)
    try:
        with serving(create_app(engine, memories, Accounts(home / "keys.jsonl"))) as address:
            yield address, key
    finally:
        engine.close()
        memories.close()
