"""Memories by name."""

from byheart.store.folder import Entry, Store

__all__ = ["Entry", "Store"]
