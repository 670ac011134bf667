"""The command that measures memories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from byheart.cli import options, terminal
from byheart.errors import UsageError

if TYPE_CHECKING:
    from byheart.evaluation.results import Result

_GAP = "gap"
_GAP_PANEL = "Of gap alone"
_COLUMNS = ("task", "dataset", "at", "method", "metric", "value", "95 %", "n", "keeps", "written in")
Tasks = Annotated[
    list[str], typer.Argument(metavar="TASK...", help="`byheart tasks` lists them; or gap.", show_default=False)
]
Methods = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="A,B:KEY=VALUE;KEY=VALUE",
        help="Methods with options of their own and of decoding, or folders of trained ones. For gap, 3/15/63 is a "
        "value for each history.",
        show_default=False,
    ),
]
Data = Annotated[
    list[str],
    typer.Option("--data", metavar="PATH|NAME", help="JSON lines, text, a folder, a hub name; repeatable."),
]
Model = Annotated[str, typer.Option("--model", "-m", help="Alias, hub id, folder or .gguf file.")]
TaskOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="Of the task; repeatable.")
]
Limit = Annotated[int, typer.Option("--limit", help="Items of each data set, at most; 0 is all.")]
Skip = Annotated[int, typer.Option("--skip", help="Items left out before them: those that settings were chosen on.")]
Batch = Annotated[int, typer.Option("--batch", help="Items at once.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the items' order.")]
Out = Annotated[
    str | None,
    typer.Option("--out", metavar="DIR", help="Keep answers and rows here; a run that is there goes on."),
]
Against = Annotated[
    str,
    typer.Option(
        "--against", metavar="MEMORY", help="One of the memories: also how much more than it the others reach."
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget", help="64KB: each memory as large as fits the longest text; NAME@64KB is for one, NAME@ for none."
    ),
]
History = Annotated[
    str, typer.Option("--history", help="Segments that are written: 1,4,16 measures each.", rich_help_panel=_GAP_PANEL)
]
Gap = Annotated[
    str,
    typer.Option(
        "--gap",
        help="Tokens of unrelated text between history and target: 0,64 measures each.",
        rich_help_panel=_GAP_PANEL,
    ),
]
Control = Annotated[
    bool,
    typer.Option("--control", help="Also measure each memory with another window's text.", rich_help_panel=_GAP_PANEL),
]
SegmentTokens = Annotated[
    int, typer.Option("--segment-tokens", help="Tokens of a segment.", rich_help_panel=_GAP_PANEL)
]
TargetTokens = Annotated[
    int,
    typer.Option("--target-tokens", help="Tokens that are predicted, where text goes on.", rich_help_panel=_GAP_PANEL),
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
    history: History = "4",
    between: Gap = "0",
    control: Control = False,
    segment_tokens: SegmentTokens = 64,
    target_tokens: TargetTokens = 64,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    as_json: options.AsJSON = False,
) -> None:
    """Measure memories on tasks: what each answers, what it keeps, what it costs."""
    if _GAP in tasks:
        _require_plain(method, {"--skip": skip, "--budget": budget, "--option": option, "--against": against})
    shared: dict[str, Any] = {"model": model, "batch": batch, "seed": seed, "dtype": dtype, "device": device}
    gap = {
        "history": _numbers("--history", history),
        "between": _numbers("--gap", between),
        "control": control,
        "segment_tokens": segment_tokens,
        "target_tokens": target_tokens,
    }
    with terminal.progressing("measuring", "steps") as progress:
        shared["progress"] = progress
        rows = _gap(method, data, out, limit, gap, shared) if _GAP in tasks else []
        others = [task for task in tasks if task != _GAP]
        chosen: dict[str, Any] = {"limit": limit, "skip": skip, "against": against, "out": out}
        rows += (
            _tasks(others, _sized(method, budget), data, chosen, options.method_options(option), shared)
            if others
            else []
        )
    if as_json:
        terminal.show_json([row.flat() for row in rows])
    else:
        terminal.show(_table(rows))


def _require_plain(method: str, flags: Mapping[str, Any]) -> None:
    """Refuse what ``gap`` has no use for, rather than leave it out in silence."""
    said = [flag for flag, value in flags.items() if value]
    if "@" in method and not Path(method.rpartition("@")[2]).exists():
        said.append("bytes behind a memory's name, @")
    if said:
        raise UsageError(
            f"gap takes no {', '.join(said)}: measure it by itself, and give a memory's size by its options."
        )


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{flag} takes numbers such as 1,4,16; it is '{text}'.") from error


def _sized(method: str, budget: str | None) -> list[str]:
    """Each memory with its number of bytes; ``NAME@`` has none."""
    from byheart.evaluation.method_spec import choices

    methods = choices(method)
    if budget is None:
        return methods
    return [each.removesuffix("@") if "@" in each else f"{each}@{budget}" for each in methods]


def _gap(
    method: str, data: list[str], out: str | None, limit: int, given: Mapping[str, Any], shared: Mapping[str, Any]
) -> list[Result]:
    from byheart.evaluation.gap import gap as measured
    from byheart.evaluation.method_spec import choices
    from byheart.evaluation.results import save
    from byheart.model.loading import silence

    silence()
    methods = choices(method)
    rows = measured(methods, data, windows=limit, **given, **shared)
    if out is not None:
        said = {**shared, **given, "windows": limit, "methods": methods, "data": data}
        del said["progress"]
        save(Path(out) / "gap.json" if not out.endswith(".json") else out, rows, **said)
    return rows


def _tasks(
    names: Sequence[str],
    methods: Sequence[str],
    data: list[str],
    chosen: Mapping[str, Any],
    given: Mapping[str, Any],
    shared: dict[str, Any],
) -> list[Result]:
    from byheart.evaluation.evaluate import evaluate as measured
    from byheart.evaluation.tasks import build
    from byheart.model.loading import silence
    from byheart.session.opening import load

    silence()
    # Unknown names are found before the first model is opened.
    tasks = [build(name, **given) for name in names]
    opened = load(shared["model"], dtype=shared["dtype"], device=shared["device"])
    settings = {**shared, **chosen, "model": opened.backbone}
    return [row for task in tasks for each in data for row in measured(task, each, methods, **settings)]


def _table(rows: Sequence[Result]) -> Table:
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for row in rows:
        at = " ".join(f"{name} {value}" for name, value in row.at.items() if not isinstance(value, float))
        kept, interval = terminal.size(row.bytes), f"{row.low:.3f} to {row.high:.3f}"
        if row.at.get("tokens"):
            kept += f", {row.bytes / row.at['tokens']:,.0f} a token"
        named = (row.task, row.dataset, at, row.method, row.metric.replace("_", " "))
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
