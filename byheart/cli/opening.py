"""Opening a memory's session from the options of a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byheart.cli import options, terminal

if TYPE_CHECKING:
    from byheart.session.session import Session
    from byheart.store.homes import AnyStore


def open_memory(
    name: str, *, home: Path | None, option: Sequence[str] | None = None, **choices: Any
) -> tuple[AnyStore, Session]:
    """The store and a session for a memory, without the messages that transformers prints on the way."""
    method_options = options.method_options(option)
    with terminal.progressing(f"opening {name}", "texts") as progress:
        from byheart.model.loading import silence
        from byheart.store.homes import open_store

        silence()
        store = open_store(home)
        return store, store.open(name, progress=progress, **choices, **method_options)
