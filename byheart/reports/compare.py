"""Runs side by side: what each memory is worth at its bytes, how that changes, what it costs, and what it came from.

What it writes:

    OUT/index.html        one page, see ``page``
    OUT/table.md          its tables
    OUT/plots/*.svg|png   its figures, see ``plots``

It measures nothing and knows no memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from byheart.evaluation.results import Result
from byheart.reports.html_report import Cell, Chapter, Picture, Table, html, markdown
from byheart.reports.plots import Line, Plot, Point, Times, curves, duration, frontier, size, times
from byheart.reports.runs import (
    CONTROLS,
    LAW,
    Number,
    Place,
    Source,
    grouped,
    is_law,
    less_is_better,
    marked,
    merged,
    read,
    said,
)

_TITLE = "Memories compared"
_READING = (
    "Against bytes, a line joins the memories that no other beats: none keeps as little and is as good. Their markers "
    "are filled, the others hollow, and those of the same bytes side by side. Bars and bands are 95 % intervals."
)


@dataclass(frozen=True)
class Comparison:
    """The numbers, the chapters that tell them, the files they came from, and the files that were written."""

    numbers: Sequence[Number]
    chapters: Sequence[Chapter]
    sources: Sequence[Source]
    page: Path
    table: Path
    plots: Sequence[Path]


@dataclass
class _Drawn:
    """The figures so far, by file name; every memory keeps its style in all of them."""

    styles: Mapping[str, int]
    plots: dict[str, Plot] = field(default_factory=dict)

    def picture(self, plot: Plot, alt: str, caption: str, *name: str) -> Picture:
        slug = re.sub(r"[^A-Za-z0-9.=]+", "-", "-".join(name)).strip("-.")[:80]
        taken = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", known) is not None for known in self.plots)
        self.plots[f"{slug}-{taken + 1}" if taken else slug] = plot
        return Picture(plot.svg, alt, caption)


def compare(paths: Sequence[str | Path], *, out: str | Path) -> Comparison:
    """Write a page, tables and figures of the runs' numbers.

    Args:
        paths: folders, of which every ``rows.json`` and ``gap.json`` is read, and files of rows.

    Raises InputError where there are no rows to be read, UsageError where matplotlib is missing.
    """
    sources = read(paths)
    numbers = marked(merged(sources))
    drawn = _Drawn({name: n for n, name in enumerate(dict.fromkeys(number.row.method for number in numbers))})
    groups = grouped(numbers, lambda number: (number.row.task, number.row.dataset))
    chapters = [_chapter(f"{task} · {data}", members, drawn) for (task, data), members in groups.items()]
    chapters.append(Chapter("What it was made from", tables=[_origin(sources)]))
    told = (_TITLE, [_lead(numbers, sources), _READING], chapters)
    folder = Path(out)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    files = []
    for name, plot in drawn.plots.items():
        files += [folder / "plots" / f"{name}.svg", folder / "plots" / f"{name}.png"]
        files[-2].write_text(plot.svg, encoding="utf-8")
        files[-1].write_bytes(plot.png)
    page, table = folder / "index.html", folder / "table.md"
    page.write_text(html(*told), encoding="utf-8")
    table.write_text(markdown(*told), encoding="utf-8")
    return Comparison(numbers, chapters, sources, page, table, files)


# ---- a task and data set ----


def _chapter(title: str, numbers: Sequence[Number], drawn: _Drawn) -> Chapter:
    metrics = grouped([one for one in numbers if not is_law(one.row.metric)], lambda one: one.row.metric)
    laws = [one for one in numbers if is_law(one.row.metric)]
    wholes = {metric: _wholes(members) for metric, members in metrics.items()}
    shown = [(metric, members) for metric, each in wholes.items() for members in each]
    fronts = [_frontier(metric, members, title, drawn) for metric, members in shown if _finite(members)]
    lines = [
        picture
        for n, (metric, members) in enumerate(metrics.items())
        for picture in _curves(metric, members, _laws_of(metric, laws, first=n == 0), title, drawn)
    ]
    slow = _times(next(iter(wholes.values()), [numbers]), title, drawn)
    return Chapter(title, [*fronts, *lines, *slow], [_numbers(title, numbers)])


def _frontier(metric: str, numbers: Sequence[Number], title: str, drawn: _Drawn) -> Picture:
    shown = _finite(numbers)
    points = [
        Point(one.row.method, drawn.styles[one.row.method], one.row.bytes, *_bounds(one.row), one.best) for one in shown
    ]
    ways = "less is better" if less_is_better(metric) else "more is better"
    way = "a control, which has no better" if metric in CONTROLS else ways
    best = [point.name for point in sorted(points, key=lambda point: point.bytes) if point.best]
    caption = f"{_headed(metric, shown[0].place)} against bytes kept; {way}."
    told = "; ".join(f"{one.row.method} {one.row.value:.3f} at {size(one.row.bytes)}" for one in shown)
    front = f" On the frontier: {', '.join(best)}." if best else ""
    plot = frontier(points, metric=_words(metric))
    return drawn.picture(plot, f"{title}. {caption} {told}.{front}", caption + front, title, metric, "bytes")


def _curves(metric: str, numbers: Sequence[Number], laws: Sequence[Number], title: str, drawn: _Drawn) -> list[Picture]:
    """A figure for each number that a metric was measured at, the others being the same."""
    pictures = []
    for at in dict.fromkeys(name for one in numbers for name, value in one.place if _is_number(value)):
        found: dict[str, list[Number]] = {}
        for one in _finite(numbers):
            if (rest := _rest(one, at)) is not None:
                found.setdefault(rest, []).append(one)
        for rest, members in found.items():
            lines = _lines(members, at, drawn)
            dashed = _lines([one for one in _finite(laws) if _rest(one, at) == rest], at, drawn, law=True)
            if any(len(line.points) > 1 for line in lines):
                others = tuple((name, value) for name, value in members[0].place if name != at)
                pictures.append(_curve(metric, others, at, lines, dashed, title, drawn))
    return pictures


def _curve(
    metric: str, others: Place, at: str, lines: list[Line], dashed: list[Line], title: str, drawn: _Drawn
) -> Picture:
    plot = curves([*lines, *dashed], metric=_words(metric), at=_words(at))
    caption = f"{_headed(metric, others)} against {_words(at)}{'; the law is dashed' if dashed else ''}."
    told = "; ".join(
        f"{line.name} {', '.join(f'{value:.3f} at {place:g}' for place, value, *_ in sorted(line.points))}"
        for line in lines
    )
    return drawn.picture(plot, f"{title}. {caption} {told}.", caption, title, metric, at)


def _lines(numbers: Sequence[Number], at: str, drawn: _Drawn, *, law: bool = False) -> list[Line]:
    return [
        Line(method, drawn.styles[method], [(dict(one.place)[at], *_bounds(one.row)) for one in members], law)
        for method, members in grouped(numbers, lambda one: one.row.method).items()
    ]


def _rest(number: Number, at: str) -> str | None:
    """What a number is of beside ``at``; None where it has none."""
    place = dict(number.place)
    return json.dumps(place, sort_keys=True) if _is_number(place.pop(at, None)) else None


def _laws_of(metric: str, laws: Sequence[Number], *, first: bool) -> list[Number]:
    """A metric's own law, or the one law of a task, which is that of its first metric."""
    return [one for one in laws if one.row.metric == f"{metric}_{LAW}" or (first and one.row.metric == LAW)]


def _times(wholes: Sequence[Sequence[Number]], title: str, drawn: _Drawn) -> list[Picture]:
    each = {one.row.method: Times(one.row.method, one.row.seconds, _answer(one)) for one in wholes[0]}
    where = _at(wholes[0][0].place)
    caption = f"Seconds to write and to answer{f', {where}' if where else ''}."
    told = "; ".join(
        f"{one.name} {duration(one.write)} to write" + (f", {duration(one.answer)} to answer" if one.answer else "")
        for one in each.values()
    )
    if not any(one.answer for one in each.values()):
        caption = caption.replace(" and to answer", "")
    return [drawn.picture(times(list(each.values())), f"{title}. {caption} {told}.", caption, title, "seconds")]


def _wholes(numbers: Sequence[Number]) -> list[list[Number]]:
    """The numbers of the whole, for each kind of question; where there are none, those of the most of what was varied.

    A place with fewer memories than another is none to compare them at.
    """
    found = []
    for members in grouped(numbers, lambda one: _kind(one)).values():
        places = grouped(members, lambda one: tuple(value for _, value in one.place if _is_number(value)))
        found.append(places[() if () in places else max(places, key=lambda place: (len(places[place]), place))])
    return found


def _kind(number: Number) -> str:
    return json.dumps([pair for pair in number.place if not _is_number(pair[1])])


# ---- tables ----


def _numbers(title: str, numbers: Sequence[Number]) -> Table:
    """A row for each memory and place, a column for each metric and cost."""
    metrics = list(dict.fromkeys(one.row.metric for one in numbers))
    groups = grouped(numbers, lambda one: (one.row.method, one.place))
    several = any(place for _, place in groups)
    rows, costs = [], [_costs(members) for members in groups.values()]
    kept = [name for name in costs[0] if any(cost[name] != "-" for cost in costs)]
    for ((method, place), members), cost in zip(groups.items(), costs, strict=True):
        found = {one.row.metric: _valued(one.row) for one in members}
        where = [Cell(_at(place) or "all")] if several else []
        values = [found.get(metric, Cell("-")) for metric in metrics]
        rows.append([Cell(method), *where, *values, *(Cell(cost[name]) for name in kept)])
    at = ["of"] if several else []
    return Table(f"{title}: value [95 % interval]", ["method", *at, *map(_words, metrics), *kept], rows)


def _costs(members: Sequence[Number]) -> dict[str, str]:
    """What a memory keeps and takes at one place: the same for all metrics."""
    one, counts = members[0].row, sorted({number.row.n for number in members})
    tokens, answer, runs = one.at.get("tokens"), _answer(members[0]), max(number.runs for number in members)
    return {
        "keeps": size(one.bytes),
        "a token": size(one.bytes / tokens) if tokens else "-",
        "to write": duration(one.seconds),
        "to answer": duration(answer) if answer is not None else "-",
        "n": f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}-{counts[-1]:,}",
        "runs": f"{runs}" if runs > 1 else "-",
    }


def _valued(row: Result) -> Cell:
    value, low, high = _bounds(row)
    # A law has no interval.
    return Cell(f"{value:,.3f}", "" if low == value == high else f"[{low:,.3f}, {high:,.3f}]")


def _origin(sources: Sequence[Source]) -> Table:
    """Every file, with all that it says of itself."""
    told = [dict(_flat(source.told)) for source in sources]
    names = list(dict.fromkeys(name for each in told for name in each))
    rows = [
        [Cell(str(source.path)), Cell(f"{len(source.rows):,}"), *(Cell(each.get(name, "-")) for name in names)]
        for source, each in zip(sources, told, strict=True)
    ]
    return Table("Files and their settings", ["file", "rows", *names], rows, numbers=False)


def _flat(about: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in about.items():
        if isinstance(value, Mapping):
            yield from ((inner, said(each)) for inner, each in value.items())
        else:
            yield name, said(value)


# ---- words ----


def _lead(numbers: Sequence[Number], sources: Sequence[Source]) -> str:
    rows = [number.row for number in numbers]
    methods, sets = len({row.method for row in rows}), len({(row.task, row.dataset) for row in rows})
    most = max(number.runs for number in numbers)
    means = f" Where runs differ in their seed alone, numbers are means, of up to {most} runs, and so are the bounds"
    counts = [(methods, "method", "methods"), (sets, "data set", "data sets"), (len(sources), "file", "files")]
    memories_said, sets_said, files_said = (f"{n} {one if n == 1 else many}" for n, one, many in counts)
    ends = f"{means} of their intervals." if most > 1 else ""
    return f"{memories_said} on {sets_said}, from {files_said}: what each is worth, keeps and takes.{ends}"


def _headed(metric: str, place: Place) -> str:
    where = _at(place)
    words = _words(metric)
    return f"{words[:1].upper()}{words[1:]}{f', {where},' if where else ''}"


def _at(place: Place) -> str:
    return ", ".join(f"{_words(name)} {said(value)}" for name, value in place)


def _words(name: str) -> str:
    return name.replace("_", " ")


# ---- numbers ----


def _bounds(row: Result) -> tuple[float, float, float]:
    return row.value, row.low, row.high


def _answer(number: Number) -> float | None:
    seconds = number.row.at.get("answer_seconds")
    return float(seconds) if _is_number(seconds) else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(numbers: Sequence[Number]) -> list[Number]:
    return [one for one in numbers if all(map(math.isfinite, _bounds(one.row)))]
