"""The commands that measure memories."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from byheart.cli import options, terminal

if TYPE_CHECKING:
    from byheart.evaluate import Row

app = typer.Typer(help="Measure memories.", no_args_is_help=True)
_COLUMNS = ("dataset", "memory", "metric", "value", "95 %", "windows", "keeps", "written in")
Memories = Annotated[
    str, typer.Option("--memory", help="Mechanisms or folders of trained ones: A,B.", show_default=False)
]
Data = Annotated[
    list[str],
    typer.Option("--data", metavar="PATH[:WEIGHT]", help="JSON lines, text, a folder, a hub name; repeatable."),
]
Model = Annotated[str, typer.Option("--model", "-m", help="Alias, hub id, folder or .gguf file.")]
Windows = Annotated[int, typer.Option("--windows", help="Of each data set.")]
History = Annotated[int, typer.Option("--history", help="Segments that are written.")]
SegmentTokens = Annotated[int, typer.Option("--segment-tokens", help="Tokens of a segment.")]
TargetTokens = Annotated[int, typer.Option("--target-tokens", help="Tokens that are predicted, where text goes on.")]
Batch = Annotated[int, typer.Option("--batch", help="Windows at once.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the windows.")]


@app.callback()
def _evaluate() -> None:
    pass


@app.command("gap")
def gap(
    memory: Memories,
    data: Data,
    model: Model = "smollm2",
    option: options.Options = None,
    windows: Windows = 64,
    history: History = 4,
    segment_tokens: SegmentTokens = 64,
    target_tokens: TargetTokens = 64,
    batch: Batch = 8,
    seed: Seed = 0,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    as_json: options.AsJSON = False,
) -> None:
    """How much of the gap between no text and the full text a memory closes."""
    shape = {"segment_tokens": segment_tokens, "target_tokens": target_tokens, "batch": batch, "seed": seed}
    where = {"model": model, "dtype": dtype, "device": device}
    given = {**options.mechanism_options(option), **shape, **where, "windows": windows, "history": history}
    rows = _measured(memory.split(","), data, **given)
    if as_json:
        terminal.show_json([asdict(row) for row in rows])
        return
    terminal.show(_table(rows))


def _measured(memories: list[str], data: list[str], **given: Any) -> list[Row]:
    with terminal.progressing("measuring") as progress:
        from byheart.evaluate import gap as measured
        from byheart.models import silence

        silence()
        return measured(memories, data, progress=progress, **given)


def _table(rows: list[Row]) -> Table:
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for row in rows:
        interval = f"{row.low:.3f} to {row.high:.3f}"
        costs = (terminal.size(row.bytes), f"{row.seconds * 1000:,.0f} ms")
        table.add_row(row.dataset, row.memory, row.metric, f"{row.value:.3f}", interval, f"{row.n:,}", *costs)
    return table
