"""``byheart compare``: the results of several runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from byheart.cli import options, terminal

Runs = Annotated[
    list[str],
    typer.Argument(metavar="DIR...", help="Folders with rows.json or gap.json, or such files.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Write index.html, table.md and plots here.")]


def compare(runs: Runs, out: Out = Path("comparison"), as_json: options.AsJSON = False) -> None:
    """Lay runs side by side on a page: what memories are worth, keep and take."""
    with terminal.progressing("drawing"):
        from byheart.reports.compare import compare as compare_runs

        report = compare_runs(runs, out=out)
    if as_json:
        plots = [str(plot) for plot in report.plots]
        rows = [number.flat() for number in report.numbers]
        terminal.show_json({"page": str(report.page), "table": str(report.table), "plots": plots, "rows": rows})
        return
    table = Table("what", "where", box=None, pad_edge=False)
    table.add_row("page", str(report.page))
    table.add_row("tables", str(report.table))
    table.add_row(f"{len(report.plots) // 2} plots", str(out / "plots"))
    terminal.show(table)
