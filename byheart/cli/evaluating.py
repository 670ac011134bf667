"""The commands that measure memories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from byheart.cli import options, terminal
from byheart.errors import UsageError

if TYPE_CHECKING:
    from byheart.rows import Row

app = typer.Typer(help="Measure memories.", no_args_is_help=True)
_COLUMNS = ("dataset", "segments", "between", "memory", "metric", "value", "95 %", "windows", "keeps", "written in")
Memories = Annotated[
    str,
    typer.Option(
        "--memory",
        metavar="A,B:KEY=VALUE;KEY=VALUE",
        help="Mechanisms with their options, or folders of trained ones; 3/15/63 is a value for each history.",
        show_default=False,
    ),
]
Data = Annotated[
    list[str],
    typer.Option("--data", metavar="PATH[:WEIGHT]", help="JSON lines, text, a folder, a hub name; repeatable."),
]
Model = Annotated[str, typer.Option("--model", "-m", help="Alias, hub id, folder or .gguf file.")]
Windows = Annotated[int, typer.Option("--windows", help="Of each data set, at most.")]
History = Annotated[str, typer.Option("--history", help="Segments that are written: 1,4,16 measures each.")]
Gap = Annotated[
    str, typer.Option("--gap", help="Tokens of unrelated text between history and target: 0,64 measures each.")
]
Control = Annotated[bool, typer.Option("--control", help="Also measure each memory with another window's text.")]
SegmentTokens = Annotated[int, typer.Option("--segment-tokens", help="Tokens of a segment.")]
TargetTokens = Annotated[int, typer.Option("--target-tokens", help="Tokens that are predicted, where text goes on.")]
Batch = Annotated[int, typer.Option("--batch", help="Windows at once.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the windows.")]
Out = Annotated[str | None, typer.Option("--out", metavar="FILE", help="Also write rows, arguments and versions here.")]


@app.callback()
def _evaluate() -> None:
    pass


@app.command("gap")
def gap(
    memory: Memories,
    data: Data,
    model: Model = "smollm2",
    windows: Windows = 64,
    history: History = "4",
    between: Gap = "0",
    control: Control = False,
    segment_tokens: SegmentTokens = 64,
    target_tokens: TargetTokens = 64,
    batch: Batch = 8,
    seed: Seed = 0,
    out: Out = None,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    as_json: options.AsJSON = False,
) -> None:
    """How much of the gap between no text and the full text a memory closes."""
    given = {name: value for name, value in locals().items() if name not in ("memory", "data", "out", "as_json")}
    given |= {"history": _numbers("--history", history), "between": _numbers("--gap", between)}
    rows = _measured(memory, data, out, **given)
    if as_json:
        terminal.show_json([row.flat() for row in rows])
        return
    terminal.show(_table(rows))


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{flag} takes numbers such as 1,4,16; it is '{text}'.") from error


def _measured(memory: str, data: list[str], out: str | None, **given: Any) -> list[Row]:
    with terminal.progressing("measuring") as progress:
        from byheart.gap import gap as measured
        from byheart.models import silence
        from byheart.rows import choices, save

        silence()
        memories = choices(memory)
        rows = measured(memories, data, progress=progress, **given)
        if out is not None:
            save(out, rows, memories=memories, data=data, **given)
        return rows


def _table(rows: Sequence[Row]) -> Table:
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for row in rows:
        windows = (
            row.dataset,
            f"{row.at['segments']}",
            f"{row.at['between']}",
            row.memory,
            row.metric.replace("_", " "),
        )
        kept = f"{terminal.size(row.bytes)}, {row.bytes / row.at['tokens']:,.0f} a token"
        interval = f"{row.low:.3f} to {row.high:.3f}"
        table.add_row(*windows, f"{row.value:.3f}", interval, f"{row.n:,}", kept, f"{row.seconds * 1000:,.0f} ms")
    return table
