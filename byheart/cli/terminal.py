"""What is seen on the terminal: progress, streamed answers, tables, JSON. Results go to stdout, the rest to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from threading import Timer
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.filesize import decimal
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from byheart.cli.printable import printable, printable_answer, printable_json
from byheart.errors import InputError, OutputError

PATIENCE = 2.0
"""Seconds before a progress bar is shown."""
SECONDS_BETWEEN_LINES = 60.0
"""Where there is no terminal, a line says so often how far a command is."""
_PIPE_WIDTH, _ANY_WIDTH = 160, 1 << 16


def show(table: Table) -> None:
    """A table on stdout, each string in a line of its own, and nothing cut short.

    In a pipe a row is a line; on a terminal that is too narrow for the table, it is a paragraph.
    """
    for column in table.columns:
        # rich lets cells be added, not changed; here none can be forgotten.
        column._cells[:] = [printable(cell) if isinstance(cell, str) else cell for cell in column.cells]
        # A name without blanks, as that of a method with its settings, stays in one piece.
        column.no_wrap, column.overflow = all(" " not in str(cell) for cell in column.cells), "fold"
    is_piped = not sys.stdout.isatty()
    console = Console(width=_PIPE_WIDTH if is_piped else None, markup=False, highlight=False, emoji=False)
    needed = Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table)
    if is_piped:
        console.width = max(console.width, needed.maximum)
    if needed.minimum > console.width and table.show_header:
        console.print("\n".join(_paragraphs(table, console.width)), soft_wrap=True)
    else:
        console.print(table)


def _paragraphs(table: Table, width: int) -> Iterator[str]:
    """The rows of a table, each cell after the name of its column; first what all of them share."""
    rows = list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True))
    names = [str(column.header) for column in table.columns]
    shared = [len(rows) > 1 and len(set(cells)) == 1 for cells in zip(*rows, strict=True)]
    for row, kept in [*((row, True) for row in rows[:1] if any(shared)), *((row, False) for row in rows)]:
        facts = (
            f"{name} {cell}"
            for name, cell, is_shared in zip(names, row, shared, strict=True)
            if is_shared == kept and cell not in ("", "-")
        )
        line = next(facts, "")
        for fact in facts:
            if cell_len(line) + 3 + cell_len(fact) > width:
                yield line
                line = f"  {fact}"
            else:
                line = f"{line}   {fact}"
        yield line


def show_json(result: Any) -> None:
    """One line of JSON on stdout."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(printable_json(json.dumps(result, ensure_ascii=not unicode)), flush=True)


def say(text: str) -> None:
    """A line on stdout."""
    print(printable(text), flush=True)


@contextmanager
def acknowledging(done: str) -> Iterator[None]:
    """Inside: what was done is printed. Where that cannot be, an OutputError says that it was done all the same."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{done}, but standard output cannot be written: {error.strerror}.") from error


def note(text: str) -> None:
    """A remark on stderr, dim on a terminal."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    console.print(printable(text), style="dim", markup=False)


def size(count: int) -> str:
    """A number of bytes in decimal units: 2.1 MB."""
    return decimal(count)


def local_time(at: str) -> str:
    """A UTC time of a header in the user's time zone."""
    return f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M}"


def said(options: Mapping[str, Any]) -> str:
    """Options as they are typed: ``slots=64 blocks=8``."""
    return " ".join(
        f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in options.items()
    )


class Lines:
    """Says how far a command is, a line now and then, where no terminal shows it."""

    def __init__(self, activity: str, *, wanted: bool) -> None:
        self.activity, self.wanted = activity, wanted
        self._begun = self._last = time.monotonic()

    def offer(self, *said: str) -> None:
        """Write a line on stderr, where it is time for one."""
        now = time.monotonic()
        if self.wanted and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            note(f"{self.activity}: {', '.join([*filter(None, said), f'{(now - self._begun) / 60:.0f} min'])}")


class Activity:
    """Called with what is done and what there is in all: moves a bar, or writes a line now and then in a log file."""

    def __init__(self, activity: str, unit: str, bar: Progress) -> None:
        self._unit, self._bar, self._count, self._so_far = unit, bar, "", ""
        self._task = bar.add_task(printable(activity), total=None, count="", so_far="")
        self._lines = Lines(activity, wanted=not bar.console.is_terminal)

    def __call__(self, done: int, total: int) -> None:
        self._count = f"{done:,}/{total:,} {self._unit}"
        self._bar.update(self._task, completed=done, total=total, count=self._count)
        self._lines.offer(self._count, self._so_far)

    def say(self, so_far: str) -> None:
        """Show beside it what is known so far."""
        self._so_far = so_far
        self._bar.update(self._task, so_far=printable(so_far))


@contextmanager
def progressing(activity: str, unit: str = "tokens") -> Iterator[Activity]:
    """Before: nothing is shown. Inside: after two seconds, a terminal has a bar, moved by the callback. After: none.

    Where stderr is no terminal, such as in a log file, there is a line a minute instead.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[so_far]}", markup=False),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    moved = Activity(activity, unit, bar)
    begin = Timer(PATIENCE, bar.start)
    if bar.console.is_terminal:
        begin.start()
    try:
        yield moved
    finally:
        begin.cancel()
        if bar.live.is_started:
            bar.stop()


def stream_answer(parts: Iterable[str], *, shown: bool = True, endable: bool = False) -> str:
    """Print an answer as it is made, without whitespace around it; gives it whole.

    Args:
        endable: Ctrl-C ends the answer where it is; without it, the command.
    """
    answer = ""
    try:
        for part in parts:
            longer = (answer + part).lstrip()
            if shown:
                more = longer[len(answer.rstrip()) : len(longer.rstrip())]
                print(printable_answer(more) if sys.stdout.isatty() else more, end="", flush=True)
            answer = longer
    except KeyboardInterrupt:
        if not endable:
            raise
    if shown:
        print(flush=True)
    return answer.rstrip()


def read_lines(prompt: str) -> Iterator[str]:
    """What is typed, line by line, until Ctrl-D or ``/exit``; empty lines are left out."""
    typing = sys.stdin.isatty()
    if typing:
        # Where there is such a module, input() can edit and recall lines.
        with suppress(ImportError):
            import readline  # noqa: F401
    while True:
        try:
            line = input(prompt if typing else "").strip()
        except EOFError:
            if typing:
                print()
            return
        except UnicodeDecodeError as error:
            raise InputError("What was typed is not UTF-8 text.") from error
        if line in ("/exit", "/quit"):
            return
        if line:
            yield line
