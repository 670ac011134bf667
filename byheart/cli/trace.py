"""``byheart trace``: what one text takes to write and to ask about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from byheart.cli import evaluate, options, terminal

if TYPE_CHECKING:
    from byheart.evaluation.trace import Trace

Task = Annotated[str, typer.Argument(metavar="TASK", help="With answers in words, such as faithful.")]
Data = Annotated[str, typer.Option("--data", metavar="PATH|NAME", help="Records of the task.", show_default=False)]
Out = Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the traces.", show_default=False)]
_TEXT = options.group(
    tokens=options.option(int, 2500, "The first text with as many is taken; FastMem's number."),
    seed=options.option(int, 0, "Of the items' order."),
)


@options.takes(evaluate.TASK, _TEXT, options.WHERE)
def trace(
    task: Task, method: evaluate.Methods, data: Data, out: Out, as_json: options.AsJSON = False, **choices: Any
) -> None:
    """Record what one long text takes to write and to ask about, step by step."""
    from byheart.evaluation import trace as traces
    from byheart.evaluation.method_spec import split_specs
    from byheart.evaluation.tasks import build
    from byheart.model.loading import silence

    silence()
    with terminal.progressing("tracing"):
        built = build(task, **options.method_options(choices.pop("option")))
        rows = traces.trace(built, data, split_specs(method), out, **choices)
    if as_json:
        terminal.show_json([asdict(row) for row in rows])
    else:
        _show(rows)


def _show(rows: Sequence[Trace]) -> None:
    table = Table("method", "tokens", "written in", "first token in", "per token", "peak", "trace", box=None)
    for row in rows:
        times = (f"{seconds * 1000:,.0f} ms" for seconds in (row.write_seconds, row.first_token_seconds))
        peak = "-" if row.peak_bytes is None else terminal.size(row.peak_bytes)
        table.add_row(row.method, f"{row.tokens:,}", *times, f"{row.token_seconds * 1000:,.1f} ms", peak, row.file)
    terminal.show(table)
