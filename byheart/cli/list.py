"""``byheart list``: all memories of the store, a row for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from byheart.cli import options, terminal
from byheart.cli.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from byheart.store.folder import Entry


def list_memories(home: options.Home = None, as_json: options.AsJSON = False) -> None:
    """List all memories."""
    from byheart.store.homes import open_store

    store = open_store(home)
    entries = store.entries()
    if as_json:
        terminal.show_json([summarise(entry) for entry in entries])
    elif not entries:
        terminal.say(f"There are no memories in {store.home}. `byheart write NAME FILE` makes one.")
    else:
        terminal.show(_lay_out(entries))


def _lay_out(entries: Sequence[Entry]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "method", "model"):
        table.add_column(column, overflow="fold")
    for column in ("texts", "tokens", "on disk"):
        table.add_column(column, justify="right")
    table.add_column("last written")
    for entry in entries:
        header, size = entry.header, terminal.size(entry.bytes)
        if header is None:
            table.add_row(entry.name, Text("damaged", style="red"), "", "", "", size, "")
            continue
        last = terminal.local_time(header.written[-1].at) if header.written else ""
        counts = (f"{len(header.written):,}", f"{header.tokens:,}", size)
        table.add_row(entry.name, header.method, header.model, *counts, last)
    return table
