"""``byheart evaluate``: methods measured on tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from byheart.cli import options, terminal

if TYPE_CHECKING:
    from byheart.evaluation.results import Result

_COLUMNS = (
    *("task", "dataset", "conditions", "method", "metric", "value", "95 %", "n", "clusters", "keeps", "written in"),
    *("reads", "again", "first token in"),
)
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
        help="JSON lines, text, a folder, a hub name (the hub: not run yet); repeatable. For gap also PATH:weight.",
    ),
]
TASK = options.group(
    model=options.option(str, "smollm2", "Alias, hub id, folder or .gguf file.", "--model", "-m"),
    option=options.option(list[str] | None, None, "Of the task; repeatable.", "--option", "-o", metavar="KEY=VALUE"),
    system_prompt=options.option(
        bool,
        True,
        "Keep what the model's chat template says of its own before a conversation; FastMem asks without it.",
        "--system-prompt/--no-system-prompt",
    ),
)
_LIMIT = options.group(limit=options.option(int, 64, "Items of each data set, at most; 0 is all."))
RUN = options.group(
    skip=options.option(int, 0, "Items to leave out before them: those that settings were chosen on."),
    batch=options.option(int, 8, "Items at once."),
    seed=options.option(int, 0, "Of the items' order."),
    out=options.option(str | None, None, "Keep answers and rows here; a run that is there is resumed.", metavar="DIR"),
)
_WRITTEN = options.group(
    predictions=options.option(
        str | None,
        None,
        "Also write each method's answers here, as byheart score and FastMem's own scripts read them.",
        metavar="DIR",
    ),
)
_COMPARED = options.group(
    budget=options.option(
        str | None, None, "64KiB: each memory as large as fits with its texts; NAME@64KiB is for one, NAME@ for none."
    ),
    against=options.option(
        str, "", "One of the methods: also how much more than it the others reach.", metavar="METHOD"
    ),
    control=options.option(
        str,
        "",
        "nothing, other or both: also each method with nothing or another item's text written, and how much more its "
        "own text gives; METHOD:control=other is for one.",
        metavar="NOTHING,OTHER",
    ),
)


@options.takes(TASK, _LIMIT, RUN, _WRITTEN, _COMPARED, options.WHERE)
def evaluate(tasks: Tasks, method: Methods, data: Data, as_json: options.AsJSON = False, **choices: Any) -> None:
    """Measure methods on tasks: what each answers, what it keeps, what it costs."""
    from byheart.evaluation.evaluate import evaluate as measure
    from byheart.evaluation.method_spec import split_specs, with_budget
    from byheart.evaluation.tasks import build
    from byheart.model.loading import silence
    from byheart.session.opening import load

    silence()
    model, budget, task_options = (choices.pop(name) for name in ("model", "budget", "option"))
    where = {name: choices.pop(name) for name in options.WHERE}
    specs = [with_budget(spec, budget) for spec in split_specs(method)]
    choices["control"] = split_specs(choices["control"])
    with terminal.progressing("measuring", "steps") as progress:
        # Unknown names are found before the model is opened.
        built = [build(name, **options.method_options(task_options)) for name in tasks]
        backbone = load(model, method="nothing", **where).backbone
        choices |= {"progress": progress, "live": show_live(progress)}
        rows = [row for task in built for row in measure(task, data, specs, model=backbone, **choices)]
    show_rows(rows, _COLUMNS, as_json=as_json)


def show_live(progress: terminal.Activity) -> Callable[[str, Mapping[str, float]], None]:
    """Shows what a method's metrics are so far: how many answers are right, and where a task counts them, failures."""

    def live(method: str, so_far: Mapping[str, float]) -> None:
        progress.say(f"{method}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in so_far.items()))

    return live


def show_rows(rows: Sequence[Result], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows as JSON, or these columns of them as a table."""
    if as_json:
        terminal.show_json([row.flat() for row in rows])
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        cells = _describe(row)
        table.add_row(*(cells[column] for column in columns))
    terminal.show(table)


def _describe(row: Result) -> dict[str, str]:
    from byheart.evaluation.results import READING_COSTS

    tokens = row.costs.get("tokens")
    reads, again, first = (row.costs.get(name) for name in READING_COSTS)
    return {
        "task": row.task,
        "dataset": row.dataset,
        "conditions": " ".join(f"{name} {value}" for name, value in row.conditions.items()),
        "method": row.method,
        "metric": row.metric.replace("_", " "),
        "value": f"{row.value:.3f}",
        "95 %": f"{row.low:.3f} to {row.high:.3f}" if row.has_interval else "-",
        "clusters": f"{row.clusters:,}" if row.clusters else "-",
        "n": f"{row.n:,}",
        "keeps": terminal.size(row.bytes) + (f", {row.bytes / tokens:,.0f} per token" if tokens else ""),
        "written in": f"{row.seconds * 1000:,.0f} ms",
        "reads": "-" if reads is None else terminal.size(round(reads)),
        "again": "-" if again is None else f"{again:,.0f} tokens",
        "first token in": "-" if first is None else f"{first * 1000:,.0f} ms",
    }
