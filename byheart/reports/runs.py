"""Runs of evaluations: read from their files, merged over seeds, and the best of them at their bytes.

Rows of several runs that differ in their seed alone become one number, their mean. Runs that differ in more are kept
apart: their memories are then called by what differs. It draws nothing and knows no memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from byheart.errors import InputError
from byheart.evaluation.results import Result, load

FILES = ("rows.json", "gap.json")
LAW = "law"
# Less than nothing is no better for them: they show what a memory does without its text.
CONTROLS = frozenset(["gap_closed_by_other_text"])
# Of what a row says in `at`, these are costs; the rest is what it is the number of.
_COSTS = ("tokens", "answer_seconds")
# These say where and in which company a number was measured, or are said by the rows; the rest says which number it is.
_INCIDENTAL = frozenset(
    [
        *("seed", "versions", "threads", "machine", "device", "batch", "data", "out", "runs"),
        *("method", "methods", "write", "tasks", "history", "between", "control"),
    ]
)
_LESS_IS_BETTER = frozenset(
    [
        *("loss", "losses", "perplexity", "ppl", "bits", "nll", "wer", "seconds"),
        *("error", "errors", "rmse", "mse", "mae", "failure", "failures"),
    ]
)
Place = tuple[tuple[str, Any], ...]
One = TypeVar("One")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Source:
    """A file of rows, and what it says it came from."""

    path: Path
    about: Mapping[str, Any]
    rows: Sequence[Result]

    @property
    def run(self) -> str:
        """What its run is called: its folder."""
        return self.path.resolve().parent.name if self.path.name in FILES else self.path.stem

    def settings(self, row: Result) -> dict[str, str]:
        """What decides a number of it, but for the seed."""
        shared = {name: said(value) for name, value in self.about.items() if name not in _INCIDENTAL}
        ours = {"task": row.task, "dataset": row.dataset, "method": row.method}
        own = [_own(run) for run in self.about.get("runs", []) if ours.items() <= run.items()]
        return {**shared, **(own[0] if own else {})}

    @property
    def told(self) -> dict[str, Any]:
        """What it says it came from, each value once that several of its rows have."""
        found: dict[str, dict[str, None]] = {}
        for run in self.about.get("runs", []):
            for name, value in _own(run).items():
                found.setdefault(name, {})[value] = None
        own = {name: "; ".join(values) for name, values in found.items()}
        return {**{name: value for name, value in self.about.items() if name != "runs"}, **own}


def _own(run: Mapping[str, Any]) -> dict[str, str]:
    """How one memory was measured on one task and data set; see ``run_folder``."""
    named = {name: value for name, value in run.items() if name in ("limit", "skip", "records")}
    return {name: said(value) for name, value in {**named, **run.get("options", {})}.items()}


@dataclass(frozen=True)
class Number:
    """A row, or the mean of those of ``runs`` runs; ``place`` is what it is the number of, ``best`` on the frontier."""

    row: Result
    runs: int = 1
    best: bool = False

    @property
    def place(self) -> Place:
        return _place(self.row)

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
    """What ``rows.load`` reads, where its values are what a row's are. Raises InputError."""
    about, rows = load(file)
    for row in rows:
        words = (row.task, row.dataset, row.method, row.metric)
        numbers = (row.value, row.low, row.high, row.n, row.bytes, row.seconds)
        if not all(isinstance(each, str) for each in words) or not all(
            isinstance(each, int | float) for each in numbers
        ):
            raise InputError(f"'{file}' cannot be read as results: {row} has words for numbers, or numbers for words.")
    return about, rows


def _place(row: Result) -> Place:
    plain = (str, int, float, bool, type(None))
    told = ((name, value if isinstance(value, plain) else said(value)) for name, value in row.at.items())
    return tuple((name, value) for name, value in told if name not in _COSTS)


def _key(row: Result) -> tuple[str, str, str, str, str]:
    return row.task, row.dataset, row.method, row.metric, json.dumps(dict(_place(row)), sort_keys=True)


def merged(sources: Sequence[Source]) -> list[Number]:
    """One number for all runs that differ in their seed alone, in the order in which the first of them came."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for source in sources:
        for row in source.rows:
            called = replace(row, method=row.method + _apart(source, row, sources))
            groups.setdefault(_key(called), []).append(called)
    return [Number(_mean(rows), len(rows)) for rows in groups.values()]


def _apart(source: Source, row: Result, sources: Sequence[Source]) -> str:
    """What tells a memory of one run from that of others that measured the same numbers otherwise."""
    ours = _keys(source, row)
    rivals = [one for one in sources if one is source or ours & _keys(one, row)]
    settings = [one.settings(row) for one in rivals]
    own = source.settings(row)
    differ = [name for name in dict.fromkeys(chain(*settings)) if len({each.get(name) for each in settings}) > 1]
    told = [f"{name} {own.get(name, 'not said')}" for name in differ]
    same = [one for one, each in zip(rivals, settings, strict=True) if each == own]
    if len({said(one.about.get("seed")) for one in same}) < len(same):
        runs = [one.run for one in same]
        told.append(source.run if len(set(runs)) == len(runs) else str(source.path))
    return f" ({', '.join(told)})" if told else ""


def _keys(source: Source, row: Result) -> set[tuple[str, ...]]:
    ours = (row.task, row.dataset, row.method)
    return {_key(one) for one in source.rows if (one.task, one.dataset, one.method) == ours}


def _mean(rows: Sequence[Result]) -> Result:
    """The mean of each number, of the intervals' bounds too; ``n`` is that of one run."""
    if len(rows) == 1:
        return rows[0]
    costs = {name: fmean(row.at[name] for row in rows) for name in _COSTS if all(name in row.at for row in rows)}
    return replace(
        rows[0],
        value=fmean(row.value for row in rows),
        low=fmean(row.low for row in rows),
        high=fmean(row.high for row in rows),
        seconds=fmean(row.seconds for row in rows),
        n=round(fmean(row.n for row in rows)),
        bytes=round(fmean(row.bytes for row in rows)),
        at={**dict(_place(rows[0])), **costs},
    )


# ---- the frontier ----


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which ``(cost, value)`` no other beats: none costs no more and is worth no less, and differs."""
    return [
        n
        for n, point in enumerate(points)
        if not any(cost <= point[0] and value >= point[1] and (cost, value) != point for cost, value in points)
    ]


def marked(numbers: Sequence[Number]) -> list[Number]:
    """Those on the frontier of their metric and place are said to be best."""
    best: set[int] = set()
    groups = grouped(range(len(numbers)), lambda n: (*_key(numbers[n].row)[:2], *_key(numbers[n].row)[3:]))
    for (_, _, metric, _), members in groups.items():
        finite = [n for n in members if math.isfinite(numbers[n].row.value)]
        sign = -1 if less_is_better(metric) else 1
        if metric not in CONTROLS and not is_law(metric):
            found = pareto([(numbers[n].row.bytes, sign * numbers[n].row.value) for n in finite])
            best.update(finite[n] for n in found)
    return [replace(number, best=n in best) for n, number in enumerate(numbers)]


def less_is_better(metric: str) -> bool:
    """Whether a metric's name says that it is a loss of some kind."""
    return not _LESS_IS_BETTER.isdisjoint(re.split(r"[^a-z]+", metric.lower()))


def is_law(metric: str) -> bool:
    """Whether a metric is what a law says of another."""
    return metric == LAW or metric.endswith(f"_{LAW}")


# ---- words and groups ----


def said(value: Any) -> str:
    """A setting as people type it."""
    if isinstance(value, list):
        return ", ".join(map(said, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def grouped(each: Iterable[One], key: Callable[[One], Key]) -> dict[Key, list[One]]:
    """Groups of one key each, in the order in which each group's first came."""
    groups: dict[Key, list[One]] = {}
    for one in each:
        groups.setdefault(key(one), []).append(one)
    return groups
