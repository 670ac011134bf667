"""Runs of evaluations: read from their files, merged over seeds, and the best of them at their bytes.

Rows of several runs that differ in their seed alone become one number, their mean. Runs that differ in more are kept
apart: their methods are then named by what differs. It draws nothing and knows no method.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from byheart.errors import InputError
from byheart.evaluation.results import Result, average, load
from byheart.evaluation.tasks import BUILT_IN
from byheart.protocol.grouping import group
from byheart.protocol.method import defaults

FILES = ("rows.json", "gap.json")
# These say where and beside what a number was measured, or stand in the rows; the rest says which number it is.
_INCIDENTAL = frozenset(
    [
        *("seed", "versions", "threads", "machine", "device", "batch", "data", "out", "runs"),
        *("method", "methods", "write", "tasks", "history", "between", "control"),
    ]
)
Place = tuple[tuple[str, Any], ...]
"""The conditions of a number, so that it can be a key."""


@dataclass(frozen=True)
class Source:
    """A file of rows, and what it says it came from."""

    path: Path
    about: Mapping[str, Any]
    rows: Sequence[Result]

    @property
    def run(self) -> str:
        """The name of its run: that of its folder."""
        return self.path.resolve().parent.name if self.path.name in FILES else self.path.stem

    def settings(self, row: Result) -> dict[str, str]:
        """What decides a number of it, except for the seed."""
        shared = {name: show(value) for name, value in self.about.items() if name not in _INCIDENTAL}
        key = {"task": row.task, "dataset": row.dataset, "method": row.method}
        configs = [
            {**_newer_options(run), **_config(run)} for run in self.about.get("runs", []) if key.items() <= run.items()
        ]
        return {**shared, **(configs[0] if configs else {})}

    @property
    def record(self) -> dict[str, Any]:
        """What it says it came from; a value that several of its rows have, once."""
        found: dict[str, dict[str, None]] = {}
        for run in self.about.get("runs", []):
            for name, value in _config(run).items():
                found.setdefault(name, {})[value] = None
        configs = {name: "; ".join(values) for name, values in found.items()}
        return {**{name: value for name, value in self.about.items() if name != "runs"}, **configs}


def _newer_options(run: Mapping[str, Any]) -> dict[str, str]:
    """Options that its task has had since, at their defaults, which are what was before there were such."""
    task = BUILT_IN.get(str(run.get("task")))
    known = defaults(task) if task and "options" in run else {}
    return {name: show(value) for name, value in known.items() if name not in run["options"]}


def _config(run: Mapping[str, Any]) -> dict[str, str]:
    """How one method was measured on one task and data set; see ``run_folder``."""
    named = {name: value for name, value in run.items() if name in ("limit", "skip", "records", "system_prompt")}
    return {name: show(value) for name, value in {**named, **run.get("options", {})}.items()}


@dataclass(frozen=True)
class Number:
    """A row, or the mean of those of ``runs`` runs; ``best`` is on the frontier."""

    row: Result
    runs: int = 1
    best: bool = False

    @property
    def place(self) -> Place:
        """The conditions; values that are not plain as text."""
        plain = (str, int, float, bool, type(None))
        conditions = self.row.conditions.items()
        return tuple((name, value if isinstance(value, plain) else show(value)) for name, value in conditions)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What it is the number of."""
        row = self.row
        return row.task, row.dataset, row.method, row.metric, json.dumps(dict(self.place), sort_keys=True)

    def flat(self) -> dict[str, Any]:
        """As it is printed."""
        return {**self.row.flat(), "runs": self.runs, "frontier": self.best}


# ---- reading and merging ----


def read(paths: Sequence[str | Path]) -> list[Source]:
    """The files of rows that are there, each once. Raises InputError."""
    files = dict.fromkeys(file.resolve() for path in paths for file in _files(Path(path)))
    sources = [Source(_near(file), *_checked(file)) for file in files]
    if not any(source.rows for source in sources):
        raise InputError(f"There are no rows in {', '.join(str(path) for path in paths) or 'no folders'}.")
    return sources


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"There is no folder and no file '{path}'.")
    found = [path] if path.is_file() else sorted(file for name in FILES for file in path.rglob(name))
    if not found:
        raise InputError(f"'{path}' holds no {' and no '.join(FILES)}; `byheart evaluate ... --out {path}` writes one.")
    return found


def _near(file: Path) -> Path:
    """As seen from here, where it lies below."""
    here = Path.cwd().resolve()
    return file.relative_to(here) if file.is_relative_to(here) else file


def _checked(file: Path) -> tuple[Mapping[str, Any], list[Result]]:
    """What ``results.load`` reads, where its values are what a row's are. Raises InputError."""
    about, rows = load(file)
    for row in rows:
        words = (row.task, row.dataset, row.method, row.metric)
        numbers = (row.value, row.low, row.high, row.n, row.bytes, row.seconds, *row.costs.values())
        if not all(isinstance(word, str) for word in words) or not all(
            isinstance(number, int | float) for number in numbers
        ):
            raise InputError(f"'{file}' cannot be read as results: {row} has words for numbers, or numbers for words.")
    return about, rows


def merge(sources: Sequence[Source]) -> list[Number]:
    """One number for all runs that differ in their seed alone, in the order in which the first of them came."""
    named = [
        replace(row, method=row.method + _difference(source, row, sources)) for source in sources for row in source.rows
    ]
    groups = group(named, lambda row: Number(row).key).values()
    # Bounds are means as well; ``n`` is that of one run.
    return [Number(average(rows, n=round(fmean(row.n for row in rows))), len(rows)) for rows in groups]


def _difference(source: Source, row: Result, sources: Sequence[Source]) -> str:
    """What tells a method of one run from that of others that measured the same numbers otherwise."""
    keys = _keys(source, row)
    rivals = [other for other in sources if other is source or keys & _keys(other, row)]
    settings = [rival.settings(row) for rival in rivals]
    own = source.settings(row)
    differ = [name for name in dict.fromkeys(chain(*settings)) if len({values.get(name) for values in settings}) > 1]
    words = [f"{name} {own.get(name, 'not said') or 'none'}" for name in differ]
    same = [rival for rival, values in zip(rivals, settings, strict=True) if values == own]
    if len({show(twin.about.get("seed")) for twin in same}) < len(same):
        runs = [twin.run for twin in same]
        words.append(source.run if len(set(runs)) == len(runs) else str(source.path))
    return f" ({', '.join(words)})" if words else ""


def _keys(source: Source, row: Result) -> set[tuple[str, ...]]:
    key = (row.task, row.dataset, row.method)
    return {Number(other).key for other in source.rows if (other.task, other.dataset, other.method) == key}


# ---- the frontier ----


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which ``(cost, value)`` no other beats: none costs no more and is worth no less, and differs."""
    return [
        n
        for n, point in enumerate(points)
        if not any(cost <= point[0] and value >= point[1] and (cost, value) != point for cost, value in points)
    ]


def mark_best(numbers: Sequence[Number]) -> list[Number]:
    """The same numbers, those on the frontier of their metric and conditions as the best."""
    best: set[int] = set()
    for members in group(range(len(numbers)), lambda n: (*numbers[n].key[:2], *numbers[n].key[3:])).values():
        rows = {n: numbers[n].row for n in members if math.isfinite(numbers[n].row.value)}
        # A control has no better, and beats nobody.
        rows = {n: row for n, row in rows.items() if row.higher_is_better is not None}
        points = [(row.bytes, row.value if row.higher_is_better else -row.value) for row in rows.values()]
        best.update(list(rows)[place] for place in pareto(points))
    return [replace(number, best=n in best) for n, number in enumerate(numbers)]


# ---- words ----


def show(value: Any) -> str:
    """A setting as people type it."""
    if isinstance(value, list):
        return ", ".join(map(show, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
