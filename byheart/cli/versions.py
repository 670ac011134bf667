"""``byheart versions``: what a memory was before, a row for each version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from byheart.cli import options, terminal
from byheart.cli.places import open_versions

if TYPE_CHECKING:
    from byheart.store.values import Version


@options.takes(options.PLACE)
def versions(name: options.Name, as_json: options.AsJSON = False, **place: Any) -> None:
    """List the versions of a memory, the newest first."""
    found = list(open_versions(**place).versions(name))
    if as_json:
        terminal.show_json([_summarise(version) for version in found])
    elif not found:
        terminal.say(f"Nothing has been written into '{name}' yet.")
    else:
        terminal.show(_lay_out(found))


def _summarise(version: Version) -> dict[str, Any]:
    counts = {"bytes": version.bytes, "slots": version.slots, "tokens": version.tokens}
    how = {"operation": version.operation, "entry": dict(version.entry), "sha256": version.sha256}
    return {"number": version.number, "created_at": version.created_at.isoformat(), **how, **counts}


def _lay_out(found: list[Version]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("version", justify="right")
    for column in ("made", "by", "source"):
        table.add_column(column, overflow="fold")
    for column in ("tokens", "slots", "on disk"):
        table.add_column(column, justify="right")
    for version in found:
        made = terminal.local_time(version.created_at.isoformat(timespec="seconds"))
        source = str(version.entry.get("source", ""))
        counts = (f"{version.tokens:,}", f"{version.slots:,}", terminal.size(version.bytes))
        table.add_row(str(version.number), made, version.operation, source, *counts)
    return table
