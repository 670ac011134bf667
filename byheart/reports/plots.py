"""Three figures of a comparison: value against a cost, value against what it was measured at, and seconds.

It knows no rows and no files: it is given names and numbers, and gives each figure back as SVG and PNG. Colours are
those of Okabe and Ito, a little darker where white would swallow them, and every method has a marker of its own too.
Figures are drawn for the width of a phone, so that their words can be read there.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from byheart.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INSTALL = "matplotlib is not installed: pip install 'byheart[eval]'"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B0508C", "#000000", "#B87F00", "#3C96CC", "#7A5230")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_GREY, _PALE = "#8A8A8A", "#E4E4E4"
_WIDTH, _HEIGHT, _LINE = 4.5, 3.0, 0.21
_LONGEST = 46
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class Plot(NamedTuple):
    """A finished figure."""

    svg: str
    png: bytes


@dataclass(frozen=True)
class Cost:
    """What a value is drawn against: its name on the axis, its numbers in words, and the least that is anything.

    Less than ``some`` is next to nothing: all such numbers stand at the left end of the axis.
    """

    name: str
    show: Callable[[float], str]
    some: float


@dataclass(frozen=True)
class Point:
    """A method's value at its cost; ``style`` is the method's number, ``best`` that it is on the frontier."""

    name: str
    style: int
    cost: float
    value: float
    low: float
    high: float
    best: bool


@dataclass(frozen=True)
class Line:
    """A method's values, ``(at, value, low, high)`` each, by what they were measured at; a law is dashed."""

    name: str
    style: int
    points: Sequence[tuple[float, float, float, float]]
    law: bool = False


@dataclass(frozen=True)
class Times:
    """The seconds that a method takes to write, and to answer where that was timed."""

    name: str
    write: float
    answer: float | None


# ---- figures ----


def frontier(points: Sequence[Point], *, metric: str, cost: Cost | None = None) -> Plot:
    """Value against a cost, bytes kept without one, with the line that joins the best."""
    cost = cost or BYTES_KEPT
    with _drawing(_legend_lines([point.name for point in points])) as (figure, axes):
        for point, shift in zip(points, _shifts([point.cost for point in points]), strict=True):
            _place(figure, axes, point, shift)
        _cost_axis(axes, [point.cost for point in points], cost)
        # Points that stand aside are not seen by the axes themselves.
        low = min(min(point.low, point.value) for point in points)
        high = max(max(point.high, point.value) for point in points)
        room = 0.05 * (high - low) or 0.05
        axes.set_ylim(low - room, high + room)
        best = sorted((point.cost, point.value) for point in points if point.best)
        if best:
            # What is best at some bytes is also to be had by who can pay more.
            ends = [*best, (axes.get_xlim()[1], best[-1][1])]
            axes.step(*zip(*ends, strict=True), where="post", color=_GREY, linewidth=1.4, zorder=1.5)
        axes.set(xlabel=cost.name, ylabel=metric)
        _legend(figure, [(point.name, point.style, not point.best, False) for point in points])
        return _finished(figure)


def curves(lines: Sequence[Line], *, metric: str, at: str) -> Plot:
    """Value against what it was measured at, each line in the band of its intervals."""
    with _drawing(_legend_lines([_of_law(line) for line in lines])) as (figure, axes):
        for line in lines:
            colour, marker = _style(line.style)
            place, value, low, high = zip(*sorted(line.points), strict=True)
            if not line.law:
                axes.fill_between(place, low, high, color=colour, alpha=0.13, linewidth=0)
            # A law is known where it was computed: its line between these points is no curve of its own.
            style = {"linestyle": "--", "markerfacecolor": "white"} if line.law else {}
            axes.plot(place, value, color=colour, marker=marker, linewidth=1.5, markersize=4.5, **style)  # type: ignore[arg-type]
        _numbers_axis(axes, sorted({point[0] for line in lines for point in line.points}))
        axes.set(xlabel=at, ylabel=metric)
        _legend(figure, [(_of_law(line), line.style, False, line.law) for line in lines])
        return _finished(figure)


def times(taken: Sequence[Times]) -> Plot:
    """Seconds to write and to answer, a line per method; those that took no measurable time have no marker."""
    with _drawing(1, height=0.75 + 0.4 * len(taken)) as (figure, axes):
        found = {(y, "write"): method.write for y, method in enumerate(taken)}
        found |= {(y, "answer"): method.answer for y, method in enumerate(taken) if method.answer is not None}
        shown = {where: seconds for where, seconds in found.items() if seconds > 0}
        low, high = _span(list(shown.values()) or [1.0])
        axes.set(
            xscale="log", xlim=(low, high), ylim=(len(taken) - 0.6, -0.8), yticks=[], xlabel="seconds, mean over items"
        )
        axes.spines["left"].set_visible(False)
        _ticks(axes, _round_numbers(low, high), duration)
        for y, method in enumerate(taken):
            axes.axhline(y, color=_PALE, linewidth=0.9)
            axes.text(0, y - 0.22, _short(method.name), transform=axes.get_yaxis_transform(), va="bottom")
        marks = {what: axes.plot([], [], **_timed(what))[0] for what in dict.fromkeys(what for _, what in found)}
        for (y, what), seconds in shown.items():
            axes.plot(seconds, y, **_timed(what))
        figure.legend(list(marks.values()), [f"to {what}" for what in marks], loc="outside lower left", ncols=2)
        return _finished(figure)


def _timed(what: str) -> dict[str, Any]:
    """The marker of seconds of one kind."""
    own = {"marker": "o", "color": _COLOURS[0]} if what == "write" else {"marker": "D", "color": _COLOURS[1]}
    face = {} if what == "write" else {"markerfacecolor": "white"}
    return {**own, **face, "linestyle": "", "markersize": 6}


def _place(figure: Figure, axes: Axes, point: Point, shift: float) -> None:
    """One point with its interval, moved aside by ``shift`` typographic points."""
    from matplotlib.transforms import ScaledTranslation

    colour, marker = _style(point.style)
    axes.errorbar(
        point.cost,
        point.value,
        yerr=[[max(point.value - point.low, 0)], [max(point.high - point.value, 0)]],
        transform=axes.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans),
        color=colour,
        marker=marker,
        markerfacecolor=colour if point.best else "white",
        markersize=6,
        elinewidth=1.1,
        zorder=2,
        # Points of one place stand aside of it, which may be beside the axes.
        clip_on=False,
    )


def _shifts(places: Sequence[float]) -> list[float]:
    """How far to move points of the same place aside, so that all of them are seen."""
    counts, seen = Counter(places), Counter[float]()
    moved = []
    for place in places:
        moved.append(6.5 * (seen[place] - (counts[place] - 1) / 2))
        seen[place] += 1
    return moved


# ---- axes ----


def _cost_axis(axes: Axes, found: Sequence[float], cost: Cost) -> None:
    """Logarithmic; next to nothing stands at the left end, so that it does not take most of the axis."""
    some = [number for number in found if number >= cost.some]
    low, high = _span(some or [cost.some])
    first = 10 ** math.floor(math.log10(low))
    if len(some) == len(found):
        axes.set(xscale="log", xlim=(low, high))
        _ticks(axes, _round_numbers(low, high), cost.show)
    else:
        axes.set_xscale("symlog", linthresh=first, linscale=0.5)
        axes.set_xlim(-0.3 * first, high)
        _ticks(axes, [0, *_round_numbers(first, high)], cost.show)


def _numbers_axis(axes: Axes, places: Sequence[float]) -> None:
    """Logarithmic where the numbers are far apart."""
    least = min(abs(place) for place in places if place) if any(places) else 1
    if places[0] >= 0 and places[-1] >= 16 * least:
        axes.set_xscale("symlog", linthresh=least, linscale=0.5) if places[0] == 0 else axes.set_xscale("log")
    # The default ticks of such an axis are formulas, which plain text does not show.
    shown = dict.fromkeys([*places[:: math.ceil(len(places) / 8)], places[-1]])
    _ticks(axes, list(shown), lambda place: f"{place:,.4g}")


def _ticks(axes: Axes, places: Sequence[float], show: Callable[[float], str]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: show(place)))


def _span(found: Sequence[float]) -> tuple[float, float]:
    """Bounds of a logarithmic axis, a decade apart at least, with room for the outermost points."""
    low, high = math.log10(min(found)), math.log10(max(found))
    room = max(0.06 * (high - low), (1 - (high - low)) / 2, 0.1)
    return float(10 ** (low - room)), float(10 ** (high + room))


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between bounds, fewer where they would be more than an axis has room for."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors, stride in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2)):
        found = [factor * 10.0**power for power in powers[::stride] for factor in factors]
        shown = [number for number in found if low <= number <= high]
        if len(shown) <= 6:
            break
    return shown


def size(count: float) -> str:
    """Bytes in words: 369 kB."""
    power = min(max(int(math.log10(count) / 3 + 1e-9), 0), len(_UNITS) - 1) if count >= 1 else 0
    return f"{count / 1000**power:.3g} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """Seconds in words: 32 ms."""
    if seconds >= 1:
        return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


# Fewer bytes than this are no state to speak of.
BYTES_KEPT = Cost("bytes kept", size, 1024)
READING_COSTS = {
    "reading_bytes": Cost("bytes while reading", size, 1024),
    "reread_tokens": Cost("tokens read again", lambda count: f"{count:,.4g}", 1),
    "first_token_seconds": Cost("seconds to the first token", duration, 1e-6),
}


# ---- parts of all figures ----


@contextmanager
def _drawing(lines: int, *, height: float = _HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """Before and after: matplotlib's settings are the user's. Inside: ours. Raises UsageError where it is missing.

    Gives a figure with room for so many lines of legend.
    """
    try:
        from matplotlib import rc_context, rc_params_from_file, rcParamsDefault
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(_INSTALL) from error
    ours = rc_params_from_file(Path(__file__).with_name("figures.mplstyle"), use_default_template=False)
    settings: dict[Any, Any] = {name: value for name, value in rcParamsDefault.items() if "backend" not in name}
    with rc_context(settings | ours):
        figure = Figure(figsize=(_WIDTH, height + _LINE * lines), layout="constrained")
        yield figure, figure.add_subplot()


def _legend(figure: Figure, entries: Sequence[tuple[str, int, bool, bool]]) -> None:
    """Below the axes, where it hides nothing; each entry has a name, a style, and is hollow or dashed."""
    from matplotlib.lines import Line2D

    handles = []
    for _, style, hollow, dashed in entries:
        colour, marker = _style(style)
        line = {"linestyle": "--"} if dashed else {"linestyle": "", "marker": marker}
        face = "white" if hollow else colour
        handles.append(Line2D([], [], color=colour, markerfacecolor=face, markersize=6, **line))  # type: ignore[arg-type]
    names = [_short(name) for name, *_ in entries]
    columns = _columns(names)
    legend = figure.legend(handles, [" "] * len(names), loc="outside lower left", ncols=columns, handlelength=1.8)
    # A legend leaves out names that begin with an underline, unless they are put in afterwards.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def _legend_lines(names: Sequence[str]) -> int:
    return math.ceil(len(names) / _columns([_short(name) for name in names]))


def _columns(names: Sequence[str]) -> int:
    longest = max(map(len, names), default=0)
    return 3 if longest <= 11 else 2 if longest <= 22 else 1


def _of_law(line: Line) -> str:
    return f"{line.name}, law" if line.law else line.name


def _short(name: str) -> str:
    """At most so long that a figure has room for it: the ends of a name tell more than its middle."""
    line = " ".join(name.split())
    half = (_LONGEST - 1) // 2
    return line if len(line) <= _LONGEST else f"{line[:half]}…{line[-half:]}"


def _style(number: int) -> tuple[str, str]:
    return _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]


def _finished(figure: Figure) -> Plot:
    text, image = io.BytesIO(), io.BytesIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    figure.savefig(image, format="png", dpi=200)
    return Plot(text.getvalue().decode(), image.getvalue())
