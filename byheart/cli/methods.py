"""``byheart methods``: the table of methods, with what each does and its options."""

from __future__ import annotations

from rich.table import Table

from byheart.cli import options, terminal


def methods(as_json: options.AsJSON = False) -> None:
    """List the methods that --method takes, with their options."""
    from byheart.methods import defaults, find, names

    kinds = {name: find(name) for name in names()}
    if as_json:
        terminal.show_json([{"method": name, "options": defaults(kind)} for name, kind in kinds.items()])
        return
    table = Table("method", "what it does", "options", box=None, pad_edge=False)
    for name, kind in kinds.items():
        summary = (kind.__doc__ or "").strip().splitlines()[0].replace("``", "")
        table.add_row(name, summary, terminal.said(defaults(kind)))
    terminal.show(table)
