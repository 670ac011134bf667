"""Figures: what is drawn, by the texts that stand in it, and how numbers become words."""

from __future__ import annotations

import re
import sys
from itertools import pairwise

import pytest

from byheart.errors import UsageError
from byheart.reports.plots import Line, Plot, Point, Times, curves, duration, frontier, size, times

pytest.importorskip("matplotlib")


def points(*kept: int) -> list[Point]:
    return [Point(f"m{n}", n, count, 0.1 * n, 0.1 * n - 0.05, 0.1 * n + 0.05, n > 0) for n, count in enumerate(kept)]


def is_picture(plot: Plot) -> bool:
    return plot.svg.lstrip().startswith("<?xml") and plot.png.startswith(b"\x89PNG")


def height(plot: Plot) -> float:
    found = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', plot.svg)
    assert found is not None
    return float(found[1])


# ---- words ----


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (0.5, "0.5 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1024, "1.02 kB"),
        (368_640, "369 kB"),
        (1_000_000, "1 MB"),
        (5_898_240, "5.9 MB"),
        (10**9, "1 GB"),
        (10**15, "1 PB"),
        (10**19, "1e+04 PB"),
    ],
)
def test_bytes_in_words(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2e-5, "20 µs"),
        (0.001, "1 ms"),
        (0.25, "250 ms"),
        (1, "1 s"),
        (1.5, "1.5 s"),
        (99.9, "99.9 s"),
        (100, "100 s"),
        (1234, "1,234 s"),
        (0, "0 µs"),
    ],
)
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- figures ----


def test_figures_are_the_same_each_time() -> None:
    draw = [lambda: frontier(points(4096, 8192), metric="f1"), lambda: times([Times("a", 0.5, None)])]
    for make in draw:
        first, second = make(), make()
        assert is_picture(first)
        assert first == second


@pytest.mark.parametrize("kept", [(4096,), (4096, 4096, 4096), (0, 8, 4096), (0, 0), (1, 10**12)])
def test_a_frontier_is_drawn_whatever_is_kept(kept: tuple[int, ...]) -> None:
    assert is_picture(frontier(points(*kept), metric="f1"))


def test_points_of_the_same_bytes_stand_side_by_side() -> None:
    apart = frontier(points(4096, 8192), metric="f1")
    beside = frontier(points(4096, 4096), metric="f1")
    assert is_picture(beside)
    assert apart.svg != beside.svg


def test_a_frontier_without_a_best_has_no_line() -> None:
    control = [Point("a", 0, 4096, 0.5, 0.4, 0.6, False), Point("b", 1, 8192, 0.7, 0.6, 0.8, False)]
    best = [Point(p.name, p.style, p.cost, p.value, p.low, p.high, True) for p in control]
    # A line that joins the best is one more path.
    paths = [frontier(each, metric="f1").svg.count("<path") for each in (control, best)]
    assert paths[0] < paths[1]


@pytest.mark.parametrize("places", [(1, 2, 3), (0, 100), (1, 1000), (-4, 4), (0, 0), (5,), tuple(range(40))])
def test_curves_are_drawn_over_any_numbers(places: tuple[int, ...]) -> None:
    line = Line("a", 0, [(place, 0.5, 0.4, 0.6) for place in places])
    assert is_picture(curves([line], metric="f1", at="turn"))


def test_a_law_is_dashed_and_has_no_band() -> None:
    values = [(1.0, 0.5, 0.4, 0.6), (2.0, 0.4, 0.3, 0.5)]
    measured, law = (curves([Line("a", 0, values, law=law)], metric="f1", at="turn").svg for law in (False, True))
    assert "stroke-dasharray" in law
    assert "stroke-dasharray" not in measured
    assert "PolyCollection" in measured or "FillBetween" in measured
    assert "PolyCollection" not in law
    assert "FillBetween" not in law


def test_more_methods_make_a_higher_figure() -> None:
    figures = [times([Times(f"method {n}", 0.1 + n, 0.2) for n in range(count)]) for count in (1, 4, 12)]
    assert all(height(first) < height(second) for first, second in pairwise(figures))
    long = frontier(
        [Point("a very long name of a method", n, 4096, 0.5, 0.4, 0.6, True) for n in range(6)], metric="f1"
    )
    short = frontier([Point(f"m{n}", n, 4096, 0.5, 0.4, 0.6, True) for n in range(6)], metric="f1")
    assert height(long) > height(short)


@pytest.mark.parametrize("taken", [[Times("a", 0.0, 0.0)], [Times("a", 0.0, None), Times("b", 1e-9, 1e5)]])
def test_times_that_cannot_be_measured_have_no_marker(taken: list[Times]) -> None:
    assert is_picture(times(taken))


def test_a_name_is_text_and_no_formula() -> None:
    for name in ("$x^2$", "_hidden", "a & b < c", "ä" * 80):
        assert is_picture(frontier([Point(name, 0, 4096, 0.5, 0.4, 0.6, True)], metric=name))


def test_there_are_more_methods_than_colours() -> None:
    many = [Point(f"m{n}", n, 1024 * (n + 1), 0.5, 0.4, 0.6, False) for n in range(30)]
    assert is_picture(frontier(many, metric="f1"))


def test_settings_of_the_user_are_left_alone() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    frontier(points(4096, 8192), metric="f1")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "draw",
    [
        lambda: frontier(points(1), metric="f1"),
        lambda: curves([Line("a", 0, [(1, 1, 1, 1)])], metric="f1", at="x"),
        lambda: times([Times("a", 1, 1)]),
    ],
    ids=["frontier", "curves", "times"],
)
def test_without_matplotlib_a_figure_says_what_to_install(draw: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"matplotlib is not installed: pip install 'byheart\[eval\]'"):
        draw()  # type: ignore[operator]
