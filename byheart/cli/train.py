"""``byheart train``: a method's learned parts, by the settings of a recipe file and of flags."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from byheart.cli import options, terminal
from byheart.training.config import TrainingConfig
from byheart.training.settings import list_settings

if TYPE_CHECKING:
    from byheart.training.loop import Step, TrainResult

_SETTINGS = list_settings(TrainingConfig)
# The method is an argument, and its options are typed as those of a memory.
_FLAGS = {name: setting for name, setting in _SETTINGS.items() if name not in ("method", "options")}
Method = Annotated[str | None, typer.Argument(help=_SETTINGS["method"].help, show_default=False)]
Out = Annotated[str, typer.Option("--out", help="Folder for the result; a run there resumes.", show_default=False)]
File = Annotated[str | None, typer.Option("--recipe", metavar="FILE", help="Settings in TOML; flags change them.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="Of the method; repeatable.")
]


@options.takes(options.settings_group(_FLAGS))
def train(
    out: Out,
    method: Method = None,
    recipe: File = None,
    option: Options = None,
    as_json: options.AsJSON = False,
    **choices: Any,
) -> None:
    """Train a method on text: its learned parts alone, the model stays as it is."""
    if choices["segments"] is not None:
        choices["segments"] = options.parse_numbers("--segments", choices["segments"])
    config = TrainingConfig.of(recipe, method=method, options=options.method_options(option) or None, **choices)
    with _progressing() as (ready, progress):
        from byheart.model.loading import silence

        silence()
        result = config.run(out, ready=ready, progress=progress)
    if _is_first():
        _report(result, as_json=as_json)


def _report(result: TrainResult, *, as_json: bool) -> None:
    if as_json:
        terminal.show_json({**asdict(result), "losses": len(result.losses), "loss": result.losses[-1]})
        return
    held_out = "" if result.held_out is None else f", {result.held_out:.3f} on held-out data"
    terminal.say(f"Trained {len(result.losses):,} steps: loss {result.losses[-1]:.3f}{held_out}.")
    terminal.say(f"Learned parts: {result.parameters:,} parameters.")
    terminal.say(f"Use it: byheart write NAME FILE --method {result.path}")


def _is_first() -> bool:
    """Whether this is the first of several processes, which launchers number, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _progressing() -> Iterator[tuple[Callable[[int, int], None], Callable[[Step], None]]]:
    """Before: nothing is shown. Inside: a bar, or a line a minute where there is no terminal. After: nothing.

    Gives a function that takes the steps done and the steps in all, at the start, and one that takes every step.
    """
    columns: tuple[Any, ...] = (BarColumn(30), MofNCompleteColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    quiet = not (console.is_terminal and _is_first())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("opening the model", total=None)
        lines = terminal.Lines("training", wanted=not console.is_terminal and _is_first())
        steps = ""

        def ready(done: int, total: int) -> None:
            nonlocal steps
            steps = f"{total:,}"
            bar.update(task, completed=done, total=total, description="")

        def progress(step: Step) -> None:
            line = f"loss {step.loss:.3f}, {step.tokens / step.seconds:,.0f} tokens/s"
            if step.held_out is not None:
                line += f", held out {step.held_out:.3f}"
            bar.update(task, advance=1, description=line)
            lines.offer(f"step {step.step:,} of {steps}", line)

        yield ready, progress
