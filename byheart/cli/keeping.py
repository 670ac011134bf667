"""The commands that look after memories: list, show, fork, forget; and the list of methods."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from byheart.cli import options, terminal
from byheart.errors import UsageError

if TYPE_CHECKING:
    from byheart.protocol.state import Header
    from byheart.store.folder import Entry

_LAST = 10
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def list_all(home: options.Home = None, as_json: options.AsJSON = False) -> None:
    """List all memories."""
    from byheart.store.folder import Store

    store = Store(home)
    entries = store.entries()
    if as_json:
        terminal.show_json([_summary(entry) for entry in entries])
    elif not entries:
        print(f"There are no memories in {store.home}. `byheart write NAME FILE` makes one.")
    else:
        terminal.show(_overview(entries))


def show(name: options.Name, home: options.Home = None, as_json: options.AsJSON = False) -> None:
    """Show what a memory is made of and what was written into it."""
    from byheart.store.folder import Store

    entry = Store(home).entry(name)
    if as_json or entry.header is None:
        terminal.show_json({**_summary(entry), **(asdict(entry.header) if entry.header else {})})
        return
    terminal.show(_facts(entry, entry.header))
    print()
    terminal.show(_history(entry.header))


def fork(
    name: options.Name,
    new: Annotated[str, typer.Argument(help="Name of the copy.", show_default=False)],
    home: options.Home = None,
    as_json: options.AsJSON = False,
) -> None:
    """Copy a memory; later writes go into one of the two only."""
    from byheart.store.folder import Store

    entry = Store(home).fork(name, new)
    if as_json:
        terminal.show_json(_summary(entry))
    else:
        print(f"Copied '{name}' to '{new}' ({terminal.size(entry.bytes)}).")


def forget(name: options.Name, yes: Yes = False, home: options.Home = None, as_json: options.AsJSON = False) -> None:
    """Delete a memory for good."""
    from byheart.store.folder import Store

    store = Store(home)
    store.existing(name)
    if not yes and not sys.stdin.isatty():
        raise UsageError(f"To forget '{name}' without being asked, give --yes.")
    if not yes:
        typer.confirm(f"Forget '{name}' for good?", abort=True)
    store.forget(name)
    if as_json:
        terminal.show_json({"name": name, "forgotten": True})
    else:
        print(f"Forgot '{name}'.")


def methods(as_json: options.AsJSON = False) -> None:
    """List the methods that --method takes, with their options."""
    from byheart.methods import BUILT_IN, defaults

    if as_json:
        terminal.show_json([{"method": name, "options": defaults(kind)} for name, kind in BUILT_IN.items()])
        return
    table = Table("method", "what it does", "options", box=None, pad_edge=False)
    for name, kind in BUILT_IN.items():
        what = (kind.__doc__ or "").strip().splitlines()[0].replace("``", "")
        table.add_row(name, what, terminal.said(defaults(kind)))
    terminal.show(table)


def _summary(entry: Entry) -> dict[str, Any]:
    named = {"name": entry.name, "path": str(entry.path), "bytes": entry.bytes}
    if entry.header is None:
        return {**named, "problem": entry.problem}
    header = entry.header
    counted = {"texts": len(header.written), "tokens": header.tokens, "characters": header.characters}
    return {**named, "method": header.method, "model": header.model, **counted, "last_written": _last(header)}


def _last(header: Header) -> str | None:
    return header.written[-1].at if header.written else None


def _overview(entries: list[Entry]) -> Table:
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
        last = terminal.moment(header.written[-1].at) if header.written else ""
        row = (entry.name, header.method, header.model, f"{len(header.written):,}", f"{header.tokens:,}", size, last)
        table.add_row(*row)
    return table


def _facts(entry: Entry, header: Header) -> Table:
    table = Table.grid(padding=(0, 2))
    held = f"{header.slots:,} rows" + (f" of {header.capacity:,}" if header.capacity is not None else "")
    facts = {
        "name": entry.name,
        "method": header.method,
        "options": terminal.said(header.options),
        "trained parts": f"{header.learned} ({header.adapter})" if header.learned else "",
        "model": f"{header.model} ({header.dtype})",
        "fingerprints": f"model {header.backbone}\ntokenizer {header.tokenizer}",
        "written": f"{header.tokens:,} tokens, {header.characters:,} characters",
        "prefix": held,
        "on disk": f"{terminal.size(entry.bytes)} ({entry.bytes:,} bytes)",
        "file": str(entry.path),
    }
    for what, value in facts.items():
        if value:
            table.add_row(what, value)
    return table


def _history(header: Header) -> Table:
    earlier = len(header.written) - _LAST
    left_out = f"and {earlier:,} earlier" if earlier > 0 else None
    table = Table(box=None, pad_edge=False, caption=left_out, caption_justify="left")
    for column in ("written", "source"):
        table.add_column(column, overflow="fold")
    for column in ("tokens", "characters"):
        table.add_column(column, justify="right")
    for one in header.written[-_LAST:]:
        table.add_row(terminal.moment(one.at), one.source, f"{one.tokens:,}", f"{one.characters:,}")
    return table
