"""Runs side by side: what each method is worth at its bytes, how that changes, what it costs, and what it came from.

What it writes:

    OUT/index.html        one page, see ``html_report``
    OUT/table.md          its tables
    OUT/plots/*.svg|png   its figures, see ``plots``

It measures nothing and knows no method.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from byheart.evaluation.metrics import LAW
from byheart.evaluation.results import Result
from byheart.protocol.grouping import group
from byheart.reports.html_report import Cell, Chapter, Picture, Table, html, markdown
from byheart.reports.plots import (
    BYTES_KEPT,
    READING_COSTS,
    Cost,
    Line,
    Plot,
    Point,
    Times,
    curves,
    duration,
    frontier,
    size,
    times,
)
from byheart.reports.runs import Number, Place, Source, mark_best, merge, pareto, read, show

_TITLE = "Memories compared"
_WAYS = {True: "more is better", False: "less is better", None: "neither more nor less is better"}
_READING = (
    "Against a cost, a line joins the methods that no other beats: none costs as little and is as good. Their markers "
    "are filled, the others hollow, and those of the same cost side by side. Bars and bands are 95 % intervals over "
    "clusters, items that were drawn with all of their questions; a number over fewer than ten of them has none."
)


@dataclass(frozen=True)
class Comparison:
    """The numbers, the chapters that show them, the files they came from, and the files that were written."""

    numbers: Sequence[Number]
    chapters: Sequence[Chapter]
    sources: Sequence[Source]
    page: Path
    table: Path
    plots: Sequence[Path]


@dataclass
class _Drawn:
    """The figures so far, by file name, None for one that nobody wants; every method keeps its style in all of them."""

    styles: Mapping[str, int]
    ends: tuple[str, ...] | None = None
    plots: dict[str, Plot | None] = field(default_factory=dict)

    def pictures(self, draw: Callable[[], Plot], alt: str, caption: str, *name: str) -> list[Picture]:
        """The figure that ``draw`` makes, or none where its name has no end that is wanted."""
        slug = re.sub(r"[^A-Za-z0-9.=]+", "-", "-".join(name)).strip("-.")[:80]
        taken = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", known) is not None for known in self.plots)
        file = f"{slug}-{taken + 1}" if taken else slug
        plot = self.plots[file] = draw() if self.ends is None or file.endswith(self.ends) else None
        return [Picture(plot.svg, alt, caption)] if plot else []


def compare(paths: Sequence[str | Path], *, out: str | Path, figures: Sequence[str] | None = None) -> Comparison:
    """Write a page, tables and figures of the runs' numbers.

    Args:
        paths: folders, of which every ``rows.json`` and ``gap.json`` is read, and files of rows.
        figures: ends of the names of those that are drawn; all without it.

    Raises InputError where there are no rows to be read, UsageError where matplotlib is missing.
    """
    sources = read(paths)
    numbers = mark_best(merge(sources))
    styles = {name: n for n, name in enumerate(dict.fromkeys(number.row.method for number in numbers))}
    drawn = _Drawn(styles, None if figures is None else tuple(figures))
    groups = group(numbers, lambda number: (number.row.task, number.row.dataset))
    chapters = [_chapter(f"{task} · {data}", members, drawn) for (task, data), members in groups.items()]
    chapters.append(Chapter("What it was made from", tables=[_origin(sources)]))
    content = (_TITLE, [_lead(numbers, sources), _READING], chapters)
    folder = Path(out)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    files = []
    for name, plot in ((name, plot) for name, plot in drawn.plots.items() if plot):
        files += [folder / "plots" / f"{name}.svg", folder / "plots" / f"{name}.png"]
        files[-2].write_text(plot.svg, encoding="utf-8")
        files[-1].write_bytes(plot.png)
    page, table = folder / "index.html", folder / "table.md"
    page.write_text(html(*content), encoding="utf-8")
    table.write_text(markdown(*content), encoding="utf-8")
    return Comparison(numbers, chapters, sources, page, table, files)


# ---- a task and data set ----


def _chapter(title: str, numbers: Sequence[Number], drawn: _Drawn) -> Chapter:
    metrics = group(numbers, lambda number: number.row.metric)
    laws = metrics.pop(LAW, [])
    wholes = {metric: _wholes(members) for metric, members in metrics.items()}
    shown = [(metric, members) for metric, kinds in wholes.items() for members in kinds]
    fronts = [
        picture for metric, members in shown if _finite(members) for picture in _fronts(metric, members, title, drawn)
    ]
    lines = [
        picture
        for n, (metric, members) in enumerate(metrics.items())
        # The law of a task is that of its first metric.
        for picture in _curves(metric, members, [] if n else laws, title, drawn)
    ]
    slow = _times(next(iter(wholes.values()), [numbers]), title, drawn)
    return Chapter(title, [*fronts, *lines, *slow], [_numbers(title, numbers)])


def _judged(numbers: Sequence[Number]) -> list[Number]:
    """The finite numbers without those of controls, which keep nothing of a text; all where none has a better."""
    shown = _finite(numbers)
    return [number for number in shown if number.row.higher_is_better is not None] or shown


def _fronts(metric: str, numbers: Sequence[Number], title: str, drawn: _Drawn) -> list[Picture]:
    """A figure of the frontier against bytes kept, and against each cost of reading that was measured."""
    shown = _judged(numbers)
    pictures = _frontier(metric, [(number, number.row.bytes) for number in shown], BYTES_KEPT, title, drawn)
    for name, cost in READING_COSTS.items():
        found = [(number, number.row.costs[name]) for number in shown if name in number.row.costs]
        # What costs nobody anything is no axis.
        if any(spent for _, spent in found):
            pictures += _frontier(metric, _best_at(found), cost, title, drawn)
    return pictures


def _best_at(numbers: Sequence[tuple[Number, float]]) -> list[tuple[Number, float]]:
    """Numbers and what each costs, those that no other beats at that cost as the best."""
    better = numbers[0][0].row.higher_is_better
    points = [(spent, number.row.value if better else -number.row.value) for number, spent in numbers]
    best = set(pareto(points)) if better is not None else set()
    return [(replace(number, best=place in best), spent) for place, (number, spent) in enumerate(numbers)]


def _frontier(
    metric: str, numbers: Sequence[tuple[Number, float]], cost: Cost, title: str, drawn: _Drawn
) -> list[Picture]:
    points = [
        Point(number.row.method, drawn.styles[number.row.method], spent, *number.row.interval, number.best)
        for number, spent in numbers
    ]
    first = numbers[0][0]
    best = [point.name for point in sorted(points, key=lambda point: point.cost) if point.best]
    caption = f"{_headed(metric, first.place)} against {cost.name}; {_WAYS[first.row.higher_is_better]}."
    words = "; ".join(f"{point.name} {point.value:.3f} at {cost.show(point.cost)}" for point in points)
    front = f" On the frontier: {', '.join(best)}." if best else ""
    draw = partial(frontier, points, metric=_words(metric), cost=cost)
    against = "bytes" if cost is BYTES_KEPT else cost.name
    return drawn.pictures(draw, f"{title}. {caption} {words}.{front}", caption + front, title, metric, against)


def _curves(metric: str, numbers: Sequence[Number], laws: Sequence[Number], title: str, drawn: _Drawn) -> list[Picture]:
    """A figure for each number that a metric was measured at, the others being the same."""
    pictures: list[Picture] = []
    for at in dict.fromkeys(name for number in numbers for name, value in number.place if _is_number(value)):
        found, expected = (group(_finite(some), partial(_rest, at=at)) for some in (numbers, laws))
        for rest, members in found.items():
            if rest is None:
                continue
            lines = _lines(members, at, drawn)
            dashed = _lines(expected.get(rest, []), at, drawn, law=True)
            if any(len(line.points) > 1 for line in lines):
                others = tuple((name, value) for name, value in members[0].place if name != at)
                pictures += _curve(metric, others, at, lines, dashed, title, drawn)
    return pictures


def _curve(
    metric: str, others: Place, at: str, lines: list[Line], dashed: list[Line], title: str, drawn: _Drawn
) -> list[Picture]:
    draw = partial(curves, [*lines, *dashed], metric=_words(metric), at=_words(at))
    caption = f"{_headed(metric, others)} against {_words(at)}{'; the law is dashed' if dashed else ''}."
    words = "; ".join(
        f"{line.name} {', '.join(f'{value:.3f} at {place:g}' for place, value, *_ in sorted(line.points))}"
        for line in lines
    )
    return drawn.pictures(draw, f"{title}. {caption} {words}.", caption, title, metric, at)


def _lines(numbers: Sequence[Number], at: str, drawn: _Drawn, *, law: bool = False) -> list[Line]:
    return [
        Line(method, drawn.styles[method], [(dict(number.place)[at], *number.row.interval) for number in members], law)
        for method, members in group(numbers, lambda number: number.row.method).items()
    ]


def _rest(number: Number, at: str) -> str | None:
    """The conditions of a number besides ``at``; None where it does not have that one."""
    place = dict(number.place)
    return json.dumps(place, sort_keys=True) if _is_number(place.pop(at, None)) else None


def _times(wholes: Sequence[Sequence[Number]], title: str, drawn: _Drawn) -> list[Picture]:
    found = {n.row.method: Times(n.row.method, n.row.seconds, n.row.costs.get("answer_seconds")) for n in wholes[0]}
    where = _at(wholes[0][0].place)
    caption = f"Seconds to write and to answer{f', {where}' if where else ''}."
    words = "; ".join(
        f"{taken.name} {duration(taken.write)} to write"
        + (f", {duration(taken.answer)} to answer" if taken.answer else "")
        for taken in found.values()
    )
    if not any(taken.answer for taken in found.values()):
        caption = caption.replace(" and to answer", "")
    return drawn.pictures(
        partial(times, list(found.values())), f"{title}. {caption} {words}.", caption, title, "seconds"
    )


def _wholes(numbers: Sequence[Number]) -> list[list[Number]]:
    """The numbers of the whole, for each kind of question; where there are none, those of the most of what was varied.

    Methods are not compared at conditions that fewer of them have than others.
    """
    found = []
    for members in group(numbers, _kind).values():
        places = group(members, lambda number: tuple(value for _, value in number.place if _is_number(value)))
        found.append(places[() if () in places else max(places, key=lambda place: (len(places[place]), place))])
    return found


def _kind(number: Number) -> str:
    return json.dumps([pair for pair in number.place if not _is_number(pair[1])])


# ---- tables ----


def _numbers(title: str, numbers: Sequence[Number]) -> Table:
    """A row for each method and its conditions, a column for each metric and cost."""
    metrics = list(dict.fromkeys(number.row.metric for number in numbers))
    groups = group(numbers, lambda number: (number.row.method, number.place))
    several = any(place for _, place in groups)
    rows, costs = [], [_costs(members) for members in groups.values()]
    kept = [name for name in costs[0] if any(cost[name] != "-" for cost in costs)]
    for ((method, place), members), cost in zip(groups.items(), costs, strict=True):
        found = {number.row.metric: _valued(number.row) for number in members}
        where = [Cell(_at(place) or "all")] if several else []
        values = [found.get(metric, Cell("-")) for metric in metrics]
        rows.append([Cell(method), *where, *values, *(Cell(cost[name]) for name in kept)])
    at = ["of"] if several else []
    return Table(f"{title}: value [95 % interval]", ["method", *at, *map(_words, metrics), *kept], rows)


def _costs(members: Sequence[Number]) -> dict[str, str]:
    """What a method keeps and takes under the same conditions: the same for all metrics."""
    row, counts = members[0].row, [number.row.n for number in members]
    clusters = [number.row.clusters for number in members]
    tokens, answer = row.costs.get("tokens"), row.costs.get("answer_seconds")
    reading = {name: cost.show(row.costs[name]) for name, cost in READING_COSTS.items() if name in row.costs}
    runs = max(number.runs for number in members)
    return {
        "keeps": size(row.bytes),
        "per token": size(row.bytes / tokens) if tokens else "-",
        "reads": reading.get("reading_bytes", "-"),
        "tokens read again": reading.get("reread_tokens", "-"),
        "to write": duration(row.seconds),
        "to first token": reading.get("first_token_seconds", "-"),
        "to answer": duration(answer) if answer is not None else "-",
        "n": _span(counts),
        "clusters": _span(clusters) if any(clusters) else "-",
        "runs": f"{runs}" if runs > 1 else "-",
    }


def _valued(row: Result) -> Cell:
    value, low, high = row.interval
    return Cell(f"{value:,.3f}", f"[{low:,.3f}, {high:,.3f}]" if row.has_interval else "")


def _span(counts: Sequence[int]) -> str:
    """A count that all have, or the least and the most."""
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def _origin(sources: Sequence[Source]) -> Table:
    """Every file, with all that it says of itself."""
    records = [dict(_flat(source.record)) for source in sources]
    names = list(dict.fromkeys(name for record in records for name in record))
    rows = [
        [Cell(str(source.path)), Cell(f"{len(source.rows):,}"), *(Cell(record.get(name, "-")) for name in names)]
        for source, record in zip(sources, records, strict=True)
    ]
    return Table("Files and their settings", ["file", "rows", *names], rows, numbers=False)


def _flat(about: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in about.items():
        if isinstance(value, Mapping):
            yield from ((inner, show(setting)) for inner, setting in value.items())
        else:
            yield name, show(value)


# ---- words ----


def _lead(numbers: Sequence[Number], sources: Sequence[Source]) -> str:
    rows = [number.row for number in numbers]
    methods, sets = len({row.method for row in rows}), len({(row.task, row.dataset) for row in rows})
    most = max(number.runs for number in numbers)
    means = f" Where runs differ in their seed alone, numbers are means, of up to {most} runs, and so are the bounds"
    counts = [(methods, "method"), (sets, "data set"), (len(sources), "file")]
    in_words = [f"{n} {word}{'s' * (n != 1)}" for n, word in counts]
    ends = f"{means} of their intervals." if most > 1 else ""
    return f"{in_words[0]} on {in_words[1]}, from {in_words[2]}: what each is worth, keeps and takes.{ends}"


def _headed(metric: str, place: Place) -> str:
    where = _at(place)
    words = _words(metric)
    return f"{words[:1].upper()}{words[1:]}{f', {where},' if where else ''}"


def _at(place: Place) -> str:
    return ", ".join(f"{_words(name)} {show(value)}" for name, value in place)


def _words(name: str) -> str:
    return name.replace("_", " ")


# ---- numbers ----


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(numbers: Sequence[Number]) -> list[Number]:
    return [number for number in numbers if all(map(math.isfinite, number.row.interval))]
