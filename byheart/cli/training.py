"""The command that trains a memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from byheart.cli import options, terminal
from byheart.errors import UsageError

if TYPE_CHECKING:
    from byheart.training.loop import Step

_RUN, _DATA, _LOSS = "The run", "What is read", "What is learned"
_LINES_EVERY = 30.0
Learned = Annotated[str | None, typer.Argument(help="Method, or a folder with a trained one.", show_default=False)]
Out = Annotated[str, typer.Option("--out", help="Folder for the result; a run there goes on.", show_default=False)]
File = Annotated[str | None, typer.Option("--recipe", metavar="FILE", help="Settings in TOML; flags change them.")]
_SOURCE = "PATH[:WEIGHT]"
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data", metavar=_SOURCE, help="JSON lines, text, a folder, a hub name; repeatable.", rich_help_panel=_DATA
    ),
]
HeldOut = Annotated[
    list[str] | None,
    typer.Option("--held-out", metavar=_SOURCE, help="Data to measure on; repeatable.", rich_help_panel=_DATA),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts", help="Ask each record by its data set's prompt; learn the label or all.", rich_help_panel=_DATA
    ),
]
Segments = Annotated[
    str | None,
    typer.Option("--segments", help="Segments of an episode, drawn a batch: 1,2,4,8.", rich_help_panel=_DATA),
]
SegmentTokens = Annotated[int | None, typer.Option("--segment-tokens", help="64.", rich_help_panel=_DATA)]
TargetTokens = Annotated[int | None, typer.Option("--target-tokens", help="64.", rich_help_panel=_DATA)]
Batch = Annotated[int | None, typer.Option("--batch", help="Episodes; 16.", rich_help_panel=_DATA)]
BatchTokens = Annotated[
    int | None,
    typer.Option("--batch-tokens", help="Fill batches to so many tokens; 0 counts episodes.", rich_help_panel=_DATA),
]
Packed = Annotated[
    int | None,
    typer.Option("--packed", help="Batches drawn together and dealt by length; 1.", rich_help_panel=_DATA),
]
Accumulate = Annotated[int | None, typer.Option("--accumulate", help="Batches a step; 1.", rich_help_panel=_DATA)]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", help="3e-4.", rich_help_panel=_LOSS)]
Teacher = Annotated[
    float | None,
    typer.Option("--teacher", help="Weight of what the model itself says with the full text.", rich_help_panel=_LOSS),
]
EverySegment = Annotated[
    float | None,
    typer.Option("--every-segment", help="Weight of the text after the first segment.", rich_help_panel=_LOSS),
]
TooLong = Annotated[
    str | None,
    typer.Option("--too-long", help="Episodes beyond the model's positions: refuse or cut.", rich_help_panel=_DATA),
]
Steps = Annotated[int | None, typer.Option("--steps", help="1000.", rich_help_panel=_RUN)]
Epochs = Annotated[
    int | None, typer.Option("--epochs", help="Times through the prompts, for steps.", rich_help_panel=_RUN)
]
Seed = Annotated[int | None, typer.Option("--seed", help="0.", rich_help_panel=_RUN)]
SaveEvery = Annotated[int | None, typer.Option("--save-every", help="Steps; 100.", rich_help_panel=_RUN)]
EvaluateEvery = Annotated[
    int | None, typer.Option("--evaluate-every", help="Steps; 0 is at the end alone.", rich_help_panel=_RUN)
]
Track = Annotated[
    str | None, typer.Option("--track", help="trackio, wandb or tensorboard; none.", rich_help_panel=_RUN)
]
DType = Annotated[str | None, typer.Option("--dtype", help="auto, bfloat16, float32 or 4bit.", rich_help_panel=_RUN)]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_RUN)]


def train(
    out: Out,
    method: Learned = None,
    recipe: File = None,
    model: options.Model = None,
    option: options.Options = None,
    data: Data = None,
    held_out: HeldOut = None,
    prompts: Prompts = None,
    segments: Segments = None,
    segment_tokens: SegmentTokens = None,
    target_tokens: TargetTokens = None,
    batch: Batch = None,
    batch_tokens: BatchTokens = None,
    packed: Packed = None,
    accumulate: Accumulate = None,
    learning_rate: LearningRate = None,
    teacher: Teacher = None,
    every_segment: EverySegment = None,
    too_long: TooLong = None,
    steps: Steps = None,
    epochs: Epochs = None,
    seed: Seed = None,
    save_every: SaveEvery = None,
    evaluate_every: EvaluateEvery = None,
    track: Track = None,
    dtype: DType = None,
    device: Device = None,
    as_json: options.AsJSON = False,
) -> None:
    """Train a memory on text: its learned parts alone, the model stays as it is."""
    flags = {name: value for name, value in locals().items() if name not in ("out", "recipe", "option", "as_json")}
    flags |= {"options": options.method_options(option) or None, "segments": _numbers(segments)}
    with _shown() as (ready, progress):
        from byheart.model.loading import silence
        from byheart.training.config import TrainingConfig

        silence()
        result = TrainingConfig.of(recipe, **flags).run(out, ready=ready, progress=progress)
    if not _speaks():
        return
    if as_json:
        terminal.show_json({**vars(result), "losses": len(result.losses), "loss": result.losses[-1]})
        return
    held = "" if result.held_out is None else f", {result.held_out:.3f} on held-out data"
    print(f"Trained {len(result.losses):,} steps: loss {result.losses[-1]:.3f}{held}.")
    print(f"Learned parts: {result.parameters:,} parameters.")
    print(f"Use it: byheart write NAME FILE --method {result.path}")


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--segments takes numbers such as 1,2,4,8; it is '{text}'.") from error


def _speaks() -> bool:
    """Whether this is the first of several processes, which launchers number, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _shown() -> Iterator[tuple[Callable[[int, int], None], Callable[[Step], None]]]:
    """Before: nothing is shown. Inside: a bar, or a line now and then where there is no terminal. After: nothing.

    Gives what is called with (steps done, steps in all) at the start, and what is called with every step.
    """
    columns: tuple[Any, ...] = (BarColumn(30), MofNCompleteColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    quiet = not (console.is_terminal and _speaks())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("opening the model", total=None)
        noted = time.monotonic()

        def ready(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description="")

        def progress(step: Step) -> None:
            nonlocal noted
            said = f"loss {step.loss:.3f}, {step.tokens / step.seconds:,.0f} tokens/s"
            if step.held_out is not None:
                said += f", held out {step.held_out:.3f}"
            bar.update(task, advance=1, description=said)
            if quiet and time.monotonic() - noted > _LINES_EVERY:
                noted = time.monotonic()
                terminal.note(f"step {step.step}: {said}")

        yield ready, progress
