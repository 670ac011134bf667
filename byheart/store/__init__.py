"""Memories by name."""

from byheart.store.folder import Entry, Store
from byheart.store.homes import migrate, open_store

__all__ = ["Entry", "Store", "migrate", "open_store"]
