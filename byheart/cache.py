"""Small things that are kept so that they need not be found again, in the user's cache folder.

    CACHE/KIND/<hash of the key>.json

A cache that cannot be read or written is no error: what it held is found again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from byheart.files import cache_folder, read_json, replacing

Value = TypeVar("Value")


def recall(kind: str, key: str) -> Any:
    """What was kept under ``key``, or None."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(_path(kind, key))
    return None


def keep(kind: str, key: str, value: Any) -> None:
    """Keep ``value``, which JSON can hold, unless it is there already."""
    if recall(kind, key) != value:
        with contextlib.suppress(OSError), replacing(_path(kind, key)) as file:
            file.write_text(json.dumps(value), encoding="utf-8")


def cached(kind: str, key: str, find: Callable[[], Value]) -> Value:
    """What was kept under ``key``; ``find`` gives it the first time, and each time where the key is empty."""
    found: Value | None = recall(kind, key) if key else None
    if found is None:
        found = find()
        if key:
            keep(kind, key, found)
    return found


def _path(kind: str, key: str) -> Path:
    # Hashed: a key may come from somebody else's file, and must not name a path.
    return cache_folder() / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
