"""``byheart show``: one memory's method, model, sizes, and the texts that were written into it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from byheart.cli import options, terminal
from byheart.cli.places import open_store
from byheart.cli.printable import printable

if TYPE_CHECKING:
    from byheart.cli.places import AnyEntry
    from byheart.protocol.state import Header

_LAST = 10


@options.takes(options.PLACE)
def show(name: options.Name, as_json: options.AsJSON = False, **place: Any) -> None:
    """Show what a memory is made of and what was written into it."""
    entry = open_store(**place).entry(name)
    if as_json or entry.header is None:
        terminal.show_json({**entry.summary(), **(asdict(entry.header) if entry.header else {})})
        return
    terminal.show(_lay_out_facts(entry, entry.header))
    terminal.say("")
    terminal.show(_lay_out_history(entry.header))


def _lay_out_facts(entry: AnyEntry, header: Header) -> Table:
    table = Table.grid(padding=(0, 2))
    facts: dict[str, str | Text] = {
        "name": entry.name,
        "method": header.method,
        "options": terminal.said(header.options),
        "trained parts": f"{header.learned} ({header.adapter})" if header.learned else "",
        "model": f"{header.model} ({header.dtype})",
        "fingerprints": Text(f"model {printable(header.backbone)}\ntokenizer {printable(header.tokenizer)}"),
        "written": f"{header.tokens:,} tokens, {header.characters:,} characters",
        "slots": f"{header.slots:,}" + (f" of {header.capacity:,}" if header.capacity is not None else ""),
        "on disk": f"{terminal.size(entry.bytes)} ({entry.bytes:,} bytes)",
        "file": str(entry.path),
    }
    for fact, value in facts.items():
        if value:
            table.add_row(fact, value)
    return table


def _lay_out_history(header: Header) -> Table:
    earlier = len(header.written) - _LAST
    left_out = f"and {earlier:,} earlier" if earlier > 0 else None
    table = Table(box=None, pad_edge=False, caption=left_out, caption_justify="left")
    for column in ("written", "source"):
        table.add_column(column, overflow="fold")
    for column in ("tokens", "characters"):
        table.add_column(column, justify="right")
    for entry in header.written[-_LAST:]:
        table.add_row(terminal.local_time(entry.at), entry.source, f"{entry.tokens:,}", f"{entry.characters:,}")
    return table
