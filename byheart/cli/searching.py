"""The command that looks for the best settings of a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from byheart.cli import evaluating, options, terminal
from byheart.errors import UsageError

if TYPE_CHECKING:
    from byheart.evaluation.results import Result

Data = Annotated[
    str, typer.Option("--data", metavar="PATH|NAME", help="Items to choose by; report others.", show_default=False)
]
Grid = Annotated[
    list[str] | None,
    typer.Option("--grid", metavar="KEY=V1,V2", help="Values to try; repeatable. FastMem's 60 settings without it."),
]
Method = Annotated[str, typer.Option("--method", help="Method that is tuned.")]
Limit = Annotated[int, typer.Option("--limit", help="Items at most; 0 is all.")]
Task = Annotated[str, typer.Option("--task", help="What is measured; `byheart tasks` lists them.")]
Metric = Annotated[str, typer.Option("--metric", help="Of the task.")]


def search(
    data: Data,
    grid: Grid = None,
    method: Method = "last-ffn",
    task: Task = "faithful",
    metric: Metric = "accuracy",
    model: evaluating.Model = "smollm2",
    option: evaluating.TaskOptions = None,
    limit: Limit = 100,
    skip: evaluating.Skip = 0,
    batch: evaluating.Batch = 8,
    seed: evaluating.Seed = 0,
    out: evaluating.Out = None,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    as_json: options.AsJSON = False,
) -> None:
    """Try a grid of settings on some items and list the best first; then measure it on other items."""
    from byheart.evaluation import grid_search as searching
    from byheart.evaluation.tasks import build
    from byheart.model.loading import silence

    silence()
    built = build(task, **options.method_options(option))
    with terminal.progressing("searching", "items") as progress:
        rows = searching.search(
            built,
            data,
            method=method,
            grid=_parse_grid(grid) or searching.GRID,
            metric=metric,
            model=model,
            limit=limit,
            skip=skip,
            seed=seed,
            batch=batch,
            out=out,
            dtype=dtype,
            device=device,
            progress=progress,
        )
    if as_json:
        terminal.show_json([row.flat() for row in rows])
        return
    terminal.show(_table(rows))
    others = f"with --skip {skip + limit}" if limit else "of another file"
    terminal.note(f"The best: --method '{rows[0].method}'. Measure it on other items, {others}.")


def _parse_grid(given: Sequence[str] | None) -> dict[str, list[str]]:
    """``key=v1,v2`` each. Raises UsageError."""
    pairs = [text.partition("=") for text in given or ()]
    for key, equals, values in pairs:
        if not key or not equals or not values:
            raise UsageError(f"--grid takes key=value,value, such as steps=10,20; it is '{key}{equals}{values}'.")
    return {key.replace("-", "_"): [value.strip() for value in values.split(",")] for key, _, values in pairs}


def _table(rows: Sequence[Result]) -> Table:
    table = Table("method", "metric", "value", "95 %", "n", "written in", box=None, pad_edge=False)
    for row in rows:
        interval, seconds = f"{row.low:.3f} to {row.high:.3f}", f"{row.seconds * 1000:,.0f} ms"
        table.add_row(row.method, row.metric, f"{row.value:.3f}", interval, f"{row.n:,}", seconds)
    return table
