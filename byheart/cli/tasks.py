"""``byheart tasks``: the table of tasks, with what each measures and its options."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from byheart.cli import options, terminal


def tasks(as_json: options.AsJSON = False) -> None:
    """List the tasks that `byheart evaluate` knows."""
    from byheart.evaluation.tasks import BUILT_IN, defaults

    rows: list[dict[str, Any]] = [
        {
            "task": name,
            "measures": str(kind.__doc__).splitlines()[0],
            "options": defaults(kind),
            "data": dict(kind.sources),
        }
        for name, kind in BUILT_IN.items()
    ]
    if as_json:
        terminal.show_json(rows)
        return
    table = Table("task", "measures", "options", "data of its own", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["task"], row["measures"], terminal.said(row["options"]), " ".join(row["data"]))
    terminal.show(table)
