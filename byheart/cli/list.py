"""``byheart list``: all memories of the store, a row for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from byheart.cli import options, terminal
from byheart.cli.places import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from byheart.cli.places import AnyEntry

_NUMBERS = ("texts", "tokens", "on disk")
_HEADINGS = ("name", "method", "model", *_NUMBERS, "last written")


@options.takes(options.PLACE)
def list_memories(as_json: options.AsJSON = False, **place: Any) -> None:
    """List all memories."""
    store = open_store(**place)
    entries = store.entries()
    if as_json:
        terminal.show_json([entry.summary() for entry in entries])
    elif not entries:
        terminal.say(f"There are no memories in {store.home}. `byheart write NAME FILE` makes one.")
    else:
        terminal.show(_lay_out(entries))


def _lay_out(entries: Sequence[AnyEntry]) -> Table:
    table = Table(box=None, pad_edge=False)
    rows = [_lay_out_row(entry.summary()) for entry in entries]
    # A server does not say all that a file says.
    kept = [column for column in range(len(_HEADINGS)) if any(row[column] for row in rows)]
    for heading in (_HEADINGS[column] for column in kept):
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row[column] for column in kept))
    return table


def _lay_out_row(summary: dict[str, Any]) -> list[str | Text]:
    size = terminal.size(summary["bytes"])
    if "problem" in summary:
        return [summary["name"], Text("damaged", style="red"), "", "", "", size, ""]
    texts, last = summary.get("texts"), summary.get("last_written")
    counts = ["" if texts is None else f"{texts:,}", f"{summary['tokens']:,}", size]
    names = [summary["name"], summary["method"] or "", summary["model"]]
    return [*names, *counts, terminal.local_time(last) if last else ""]
