"""Runs side by side: nothing of the rows is lost, seeds are merged, and what is best at its bytes is marked."""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import InputError, UsageError
from byheart.evaluation.results import COSTS, Result, save
from byheart.reports.html_report import Cell, Chapter, Picture, Table, html as page_of, markdown
from byheart.reports.plots import duration, size
from byheart.reports.runs import mark_best, merge, pareto, read
from tests.conftest import Run

SCRIPT = "<script>alert('x')</script>|`_a_$b$"
WORTH = {
    "nothing": (0, 0.1),
    "full": (5_898_240, 0.9),
    "window:sinks=1;recent=15": (368_640, 0.4),
    SCRIPT: (368_640, 0.3),
}
BETTER = {"loss": False, "gap_closed_by_other_text": None, "law": None}


def row(method: str = "full", value: float = 0.5, *, metric: str = "accuracy", kept: int = 4096, **rest: Any) -> Result:
    numbers = (value, value - 0.1, value + 0.1, 40, kept, 0.25)
    costs = {name: rest.pop(name) for name in COSTS if name in rest}
    return Result("qa", "squad", method, metric, *numbers, rest, costs, BETTER.get(metric, True))


def rows(shift: float = 0.0) -> list[Result]:
    found = []
    for method, (kept, value) in WORTH.items():
        for turn in (1, 2, 40):
            costs = {"turn": turn, "kind": "name", "answer_seconds": 0.5, "tokens": 64.0}
            found += [row(method, value / turn + shift, kept=kept, **costs)]
            found += [row(method, value / (turn + 1), metric="law", kept=kept, **costs)]
    return found


def run_folder(folder: Path, made: Sequence[Result], name: str = "rows.json", **about: Any) -> Path:
    save(folder / name, made, **{"model": "smollm2", "limit": 40, "seed": 0, **about})
    return folder


# ---- the frontier ----


def test_the_frontier_of_a_case_made_by_hand() -> None:
    points = [(1, 0.1), (2, 0.3), (2, 0.2), (3, 0.3), (4, 0.5), (4, 0.5), (9, 0.4)]
    assert pareto(points) == [0, 1, 4, 5]
    assert pareto([]) == []


@pytest.mark.parametrize(
    ("metric", "best"), [("accuracy", ["a", "b"]), ("loss", ["a", "c"]), ("gap_closed_by_other_text", []), ("law", [])]
)
def test_what_is_better_goes_by_the_metric(tmp_path: Path, metric: str, best: list[str]) -> None:
    made = [row(name, value, metric=metric, kept=kept) for name, value, kept in (("a", 2, 1), ("b", 3, 2), ("c", 1, 3))]
    made.append(row("d", float("nan"), metric=metric, kept=0))
    found = mark_best(merge(read([run_folder(tmp_path, made)])))
    assert [number.row.method for number in found if number.best] == best


def test_a_frontier_is_of_one_place(tmp_path: Path) -> None:
    found = mark_best(merge(read([run_folder(tmp_path, [row("a", 1, turn=1), row("b", 0.5, turn=2)])])))
    assert all(number.best for number in found)


# ---- merging ----


def test_runs_of_several_seeds_are_one_number(tmp_path: Path) -> None:
    for seed, value in enumerate((0.3, 0.4, 0.8)):
        run_folder(tmp_path / str(seed), [row(value=value, turn=1, answer_seconds=seed)], seed=seed, batch=seed + 1)
    (number,) = merge(read([tmp_path]))
    assert number.runs == 3
    assert (number.row.value, number.row.low, number.row.high) == pytest.approx((0.5, 0.4, 0.6))
    assert (number.row.n, number.row.bytes, dict(number.row.costs)) == (40, 4096, {"answer_seconds": 1.0})
    assert number.place == (("turn", 1),)


def test_runs_of_other_settings_are_called_by_them(tmp_path: Path) -> None:
    run_folder(tmp_path / "a", [row(), row("nothing", turn=1)], limit=40)
    run_folder(tmp_path / "b", [row(), row("nothing", turn=2)], limit=80, note="long")
    names = [number.row.method for number in merge(read([tmp_path / "a", tmp_path / "b"]))]
    assert names == ["full (limit 40, note not said)", "nothing", "full (limit 80, note long)", "nothing"]


def test_runs_of_one_seed_are_called_by_their_folders(tmp_path: Path) -> None:
    for run in ("old", "new"):
        run_folder(tmp_path / run, [row()])
    assert [number.row.method for number in merge(read([tmp_path]))] == ["full (new)", "full (old)"]


def test_runs_of_other_task_options_are_not_one_number(tmp_path: Path) -> None:
    for seed, distractors in enumerate((5, 5, 20)):
        measured = {"task": "qa", "dataset": "squad", "options": {"distractors": distractors}, "limit": 8, "skip": 0}
        runs = [{**measured, "method": "full"}, {**measured, "method": "nothing", "limit": 9, "records": "ab12"}]
        save(tmp_path / str(seed) / "rows.json", [row(), row("nothing")], seed=seed, runs=runs)
    sources = read([tmp_path])
    assert [(number.row.method, number.runs) for number in merge(sources)] == [
        ("full (distractors 5)", 2),
        ("nothing (distractors 5)", 2),
        ("full (distractors 20)", 1),
        ("nothing (distractors 20)", 1),
    ]
    record = sources[2].record
    assert (record["limit"], record["distractors"], record["records"]) == ("8; 9", "20", "ab12")
    assert "runs" not in record


def test_a_file_is_read_once(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [row()])
    (source,) = read([tmp_path, folder, folder / "rows.json"])
    assert source.run == "run"


# ---- what is written ----


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("matplotlib")
    from byheart.reports.compare import compare

    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run_folder(folder / str(seed), rows(0.02 * seed), seed=seed)
    gaps = [row("full", 1.5, metric="loss", segments=4, between=0, tokens=256.0), row("nothing", metric="loss", kept=8)]
    run_folder(folder / "gap", gaps, "gap.json", note={"who": "me"}, windows=48)
    return compare([folder], out=folder / "out")


def test_every_memory_and_value_is_in_page_and_table(written: Any) -> None:
    page, table = written.page.read_text(), written.table.read_text()
    shown = html.unescape(page.replace("<wbr>", ""))
    for number in written.numbers:
        assert number.row.method in shown
        for text in (f"{number.row.value:,.3f}", f"[{number.row.low:,.3f}, {number.row.high:,.3f}]"):
            assert text in table
            assert text in page
    for text in ("window:sinks=1;recent=15", "5.9 MB", "250 ms", "500 ms", "smollm2", "| me |", "turn 40"):
        assert text in table
        assert text.strip("| ") in shown
    assert {number.runs for number in written.numbers} == {1, 2}
    assert "of up to 2 runs" in page


def test_a_control_stands_in_the_table_but_not_against_bytes(tmp_path: Path) -> None:
    """What keeps nothing of a text would else be the best for its bytes."""
    pytest.importorskip("matplotlib")
    from byheart.reports.compare import compare

    control = replace(row("full:control=nothing", 0.9, kept=16), higher_is_better=None)
    run_folder(tmp_path, [row("full", 0.5), row("window", 0.4, kept=64), control, row(metric="accuracy_over_nothing")])
    made = compare([tmp_path], out=tmp_path / "out")
    table = made.table.read_text()
    assert "| `full:control=nothing` | 0.900" in table
    assert "accuracy over nothing" in table
    (figure,) = [file for file in made.plots if file.name == "qa-squad-accuracy-bytes.svg"]
    assert "control" not in figure.read_text()
    assert "On the frontier: window, full." in made.page.read_text()


def test_a_table_says_n_and_clusters_and_leaves_out_what_is_no_interval(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from byheart.reports.compare import compare

    counted = replace(row("full", 0.6), n=517, clusters=115)
    alone = replace(row("window", 0.5), low=0.5, high=0.5, n=200, clusters=4)
    run_folder(tmp_path / "one", [counted, alone])
    table = compare([tmp_path / "one"], out=tmp_path / "out").table.read_text()
    assert re.search(r"\| n \| clusters \|$", table, re.MULTILINE)
    assert re.search(r"^\| `full` \| 0\.600 \[0\.500, 0\.700\] .* \| 517 \| 115 \|$", table, re.MULTILINE)
    assert re.search(r"^\| `window` \| 0\.500 \| .* \| 200 \| 4 \|$", table, re.MULTILINE)
    # Rows of earlier versions do not say; a column of nothing is left out.
    run_folder(tmp_path / "old", [row("full", 0.6)])
    assert "| clusters |" not in compare([tmp_path / "old"], out=tmp_path / "out").table.read_text()


def test_seeds_that_agree_have_no_interval_unless_each_has(tmp_path: Path) -> None:
    """Three runs of the same accuracy are no proof of it."""
    same = replace(row("full", 0.679), low=0.679, high=0.679, clusters=8)
    for seed in range(3):
        run_folder(tmp_path / str(seed), [same if seed else row("full", 0.679)], seed=seed)
    (number,) = merge(read([tmp_path]))
    assert (number.runs, number.row.has_interval) == (3, False)


def test_names_are_text_wherever_they_stand(written: Any) -> None:
    page, table = written.page.read_text(), written.table.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    # A code span keeps what is in it as it is, but for the bar that would end the cell.
    assert "`` <script>alert('x')</script>\\|`_a_$b$ ``" in table


def test_the_page_needs_nothing_else(written: Any) -> None:
    page = written.page.read_text()
    assert not [link for link in re.findall(r'(?:src|href)="([^"]*)"', page) if not link.startswith(("data:", "#"))]
    assert not re.findall(r"@import|url\(", page)
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == len(written.plots) // 2
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)


def test_each_figure_is_svg_and_png(written: Any) -> None:
    for file in written.plots:
        begins = b"<?xml" if file.suffix == ".svg" else b"\x89PNG"
        assert file.read_bytes().startswith(begins)
    names = {file.stem for file in written.plots}
    assert {"qa-squad-accuracy-bytes", "qa-squad-accuracy-turn", "qa-squad-seconds", "qa-squad-loss-bytes"} <= names


def test_each_cost_of_reading_has_a_figure_and_a_column(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from byheart.reports.compare import compare

    worth = {"full": (0.9, 4e6, 0.0), "retrieval": (0.8, 4e6, 192.0), "compact": (0.85, 5e6, 38.4)}
    made = [
        row(method, value, kept=8, reading_bytes=read, reread_tokens=again)
        for method, (value, read, again) in worth.items()
    ]
    found = compare([run_folder(tmp_path, [*made, row("old", 0.1, kept=1)])], out=tmp_path / "out")
    names = {file.stem for file in found.plots}
    assert {f"qa-squad-accuracy-{cost}" for cost in ("bytes-while-reading", "tokens-read-again", "bytes")} <= names
    # No row says how long the first token took.
    assert "qa-squad-accuracy-seconds-to-the-first-token" not in names
    table = found.table.read_text()
    assert "accuracy | keeps | reads | tokens read again | to write |" in table
    assert "| 8 B | 4 MB | 192 | 250 ms |" in table
    assert "| 1 B | - | - | 250 ms |" in table
    fronts = re.findall(r"against ([a-z ]+); more is better\. On the frontier: ([a-z, ]+)\.", found.page.read_text())
    # Against bytes kept, more bytes buy more; against the others, the best is the cheapest.
    wanted = {"bytes kept": "old, full", "bytes while reading": "full", "tokens read again": "full"}
    assert wanted.items() <= dict(fronts).items()


def test_the_command(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = run_folder(tmp_path / "run", [row()])
    ran = run("compare", folder, "--out", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    assert "2 plots" in ran.out
    told = run("compare", folder, "--out", tmp_path / "out", "--json").json
    assert Path(told["page"]).is_file()
    assert Path(told["table"]).is_file()
    assert [(one["method"], one["value"], one["runs"], one["frontier"]) for one in told["rows"]] == [
        ("full", 0.5, 1, True)
    ]


# ---- what goes wrong ----


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no folder and no file '.*none'"):
        read([tmp_path / "none"])
    with pytest.raises(InputError, match=r"holds no rows.json and no gap.json; `byheart evaluate ... --out"):
        read([tmp_path])
    with pytest.raises(InputError, match="There are no rows in"):
        read([run_folder(tmp_path, [])])


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        json.dumps({"about": {}, "rows": [{"task": "qa"}]}),
        json.dumps({"about": [], "rows": []}),
        json.dumps({"about": {}, "rows": ["full"]}),
        json.dumps({"about": {}, "rows": [{**row().flat(), "value": "good"}]}),
    ],
)
def test_a_file_of_another_kind(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(InputError, match=r"cannot be read as results|no row of a result"):
        read([tmp_path / "rows.json"])


def test_without_the_extra_the_command_says_what_to_install(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from byheart.reports.compare import compare

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = run_folder(tmp_path / "run", [row()])
    with pytest.raises(UsageError, match=r"not installed: pip install 'byheart\[eval\]'"):
        compare([folder], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run("compare", folder).code == 2


# ---- words ----


def test_a_page_of_ones_own_is_escaped() -> None:
    chapter = Chapter(
        "a < b", [Picture("<svg/>", 'an "alt"', "c & d")], [Table("t", ["<n>", "v"], [[Cell("x"), Cell("1", "[0]")]])]
    )
    page, table = page_of("T", ["lead"], [chapter]), markdown("T", ["lead"], [chapter])
    assert all(text in page for text in ("a &lt; b", 'alt="an &#34;alt&#34;"', "c &amp; d", "&lt;n&gt;"))
    assert "| `x` | 1 [0] |" in table


def test_sizes_and_times_in_words() -> None:
    assert [size(count) for count in (0, 8, 999, 1000, 368_640, 5_898_240)] == [
        "0 B",
        "8 B",
        "999 B",
        "1 kB",
        "369 kB",
        "5.9 MB",
    ]
    assert [duration(seconds) for seconds in (2e-5, 0.25, 1.5, 1234)] == ["20 µs", "250 ms", "1.5 s", "1,234 s"]
