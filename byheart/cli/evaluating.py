"""The command that measures memories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from byheart.cli import options, terminal

if TYPE_CHECKING:
    from byheart.evaluation.results import Result

_COLUMNS = ("task", "dataset", "conditions", "method", "metric", "value", "95 %", "n", "keeps", "written in")
Tasks = Annotated[list[str], typer.Argument(metavar="TASK...", help="`byheart tasks` lists them.", show_default=False)]
Methods = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="A,B:KEY=VALUE;KEY=VALUE",
        help="Methods with options of their own and of decoding, or folders of trained ones. Where a task has several "
        "parts, as gap has for each history, 3/15/63 is a value for each.",
        show_default=False,
    ),
]
Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="PATH|NAME",
        help="JSON lines, text, a folder, a hub name; repeatable. For gap also PATH:weight.",
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="Alias, hub id, folder or .gguf file.")]
TaskOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="Of the task; repeatable.")
]
Limit = Annotated[int, typer.Option("--limit", help="Items of each data set, at most; 0 is all.")]
Skip = Annotated[
    int, typer.Option("--skip", help="Items to leave out before them: those that settings were chosen on.")
]
Batch = Annotated[int, typer.Option("--batch", help="Items at once.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the items' order.")]
Out = Annotated[
    str | None,
    typer.Option("--out", metavar="DIR", help="Keep answers and rows here; a run that is there is resumed."),
]
Against = Annotated[
    str,
    typer.Option(
        "--against", metavar="METHOD", help="One of the methods: also how much more than it the others reach."
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget", help="64KB: each memory as large as fits the longest text; NAME@64KB is for one, NAME@ for none."
    ),
]


def evaluate(
    tasks: Tasks,
    method: Methods,
    data: Data,
    model: Model = "smollm2",
    option: TaskOptions = None,
    limit: Limit = 64,
    skip: Skip = 0,
    batch: Batch = 8,
    seed: Seed = 0,
    out: Out = None,
    budget: Budget = None,
    against: Against = "",
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    as_json: options.AsJSON = False,
) -> None:
    """Measure methods on tasks: what each answers, what it keeps, what it costs."""
    from byheart.evaluation.method_spec import split_specs, with_budget

    specs = [with_budget(spec, budget) for spec in split_specs(method)]
    settings: dict[str, Any] = {"limit": limit, "skip": skip, "batch": batch, "seed": seed, "out": out}
    opening = {"dtype": dtype, "device": device}
    with terminal.progressing("measuring", "steps") as progress:
        settings |= {"against": against, "progress": progress}
        rows = _measure(tasks, data, specs, options.method_options(option), model, opening, settings)
    if as_json:
        terminal.show_json([row.flat() for row in rows])
    else:
        terminal.show(_table(rows))


def _measure(
    names: Sequence[str],
    data: Sequence[str],
    specs: Sequence[str],
    task_options: dict[str, Any],
    model: str,
    opening: dict[str, Any],
    settings: dict[str, Any],
) -> list[Result]:
    from byheart.evaluation.evaluate import evaluate as measure
    from byheart.evaluation.tasks import build
    from byheart.model.loading import silence
    from byheart.session.opening import load

    silence()
    # Unknown names are found before the model is opened.
    tasks = [build(name, **task_options) for name in names]
    backbone = load(model, **opening).backbone
    return [row for task in tasks for row in measure(task, data, specs, model=backbone, **settings)]


def _table(rows: Sequence[Result]) -> Table:
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for row in rows:
        conditions = " ".join(f"{name} {value}" for name, value in row.conditions.items())
        kept, interval = terminal.size(row.bytes), f"{row.low:.3f} to {row.high:.3f}"
        if tokens := row.costs.get("tokens"):
            kept += f", {row.bytes / tokens:,.0f} per token"
        named = (row.task, row.dataset, conditions, row.method, row.metric.replace("_", " "))
        table.add_row(*named, f"{row.value:.3f}", interval, f"{row.n:,}", kept, f"{row.seconds * 1000:,.0f} ms")
    return table


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
