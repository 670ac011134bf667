"""What time it is for the store: UTC, in milliseconds. Nothing is ordered by it, since a clock may jump."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TypeAlias

Clock: TypeAlias = Callable[[], int]
"""Milliseconds since 1970, UTC."""


def now() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def to_datetime(milliseconds: int) -> datetime:
    """A stored time, as one that says that it is UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
