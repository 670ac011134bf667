"""What is seen on the terminal, and text that is given to commands."""

from __future__ import annotations

import errno
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from byheart.cli import terminal
from byheart.cli.texts import STDIN, read_text
from byheart.errors import InputError, OutputError

# ---- words for values ----


@pytest.mark.parametrize(
    ("count", "shown"), [(1, "1 byte"), (999, "999 bytes"), (2_100_000, "2.1 MB"), (3_724_816, "3.7 MB")]
)
def test_sizes_are_in_decimal_units(count: int, shown: str) -> None:
    assert terminal.size(count) == shown


def test_options_are_shown_as_they_are_typed() -> None:
    shown = terminal.said({"slots": 64, "forget": "layer", "keep": False, "layers": [0, 2], "rank": None})
    assert shown == "slots=64 forget=layer keep=false layers=[0, 2] rank=null"
    assert terminal.said({}) == ""


def test_a_time_is_shown_in_the_zone_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(time, "tzset"):
        pytest.skip("zones cannot be set here")
    for zone, shown in (("UTC", "2026-01-31 23:30"), ("UTC-2", "2026-02-01 01:30")):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert terminal.local_time("2026-01-31T23:30:00+00:00") == shown
    monkeypatch.undo()
    time.tzset()


def test_json_is_one_line_of_readable_text(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_json({"name": "żółw", "text": "a\nb"})
    printed = capsys.readouterr().out
    assert printed == '{"name": "żółw", "text": "a\\nb"}\n'
    assert json.loads(printed) == {"name": "żółw", "text": "a\nb"}


def test_a_table_in_a_pipe_is_not_cut_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("name", box=None)
    table.add_row("x" * 120)
    table.add_row("[bold]no markup[/bold]")
    terminal.show(table)
    printed = capsys.readouterr().out
    assert "x" * 120 in printed
    assert "[bold]no markup[/bold]" in printed


METHODS = ["compressed-kv:merge=mean;segment_tokens=64;tokens=2", "compressed-kv:merge=mean;segment_tokens=64;tokens=4"]


def measured(names: list[str]) -> Table:
    """A table as ``byheart evaluate`` prints one, with a column without a value."""
    table = Table("task", "dataset", "method", "metric", "value", "95 %", "keeps", box=None, pad_edge=False)
    for place, name in enumerate(names):
        table.add_row("questions", "squad", name, "exact match", f"0.{place}", "-", "131.0 kB, 300 per token")
    return table


@pytest.mark.parametrize("columns", ["40", "80", "100"])
def test_no_setting_is_cut_on_a_narrow_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", _Screen())
    terminal.show(measured(METHODS))
    printed = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert [name for name in METHODS if name not in printed] == []
    assert "…" not in printed


def test_a_row_that_does_not_fit_is_a_paragraph_after_what_all_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", _Screen())
    terminal.show(measured(METHODS))
    assert sys.stdout.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "task questions   dataset squad   metric exact match",
        "  keeps 131.0 kB, 300 per token",
        f"method {METHODS[0]}   value 0.0",
        f"method {METHODS[1]}   value 0.1",
    ]


def test_a_row_in_a_pipe_is_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    terminal.show(measured(["full", "x" * 200]))
    assert [len(line.split()) > 5 for line in capsys.readouterr().out.splitlines()] == [True] * 3


def test_nothing_in_a_table_or_a_note_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", box=None)
    table.add_row("a\x1b[2J:cat:\nb")
    table.add_row(Text("two\nlines"))
    terminal.show(table)
    terminal.note("c\x1b[2J:cat:")
    terminal.say("d\u202e\n")
    printed = capsys.readouterr()
    assert [line.strip() for line in printed.out.splitlines()] == [
        "name",
        r"a\x1b[2J:cat:\nb",
        "two",
        "lines",
        r"d\u202e\n",
    ]
    assert printed.err == "c\\x1b[2J:cat:\n"


def test_json_is_ascii_where_the_output_is(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace"))
    terminal.show_json("é😀\udcff")
    assert json.loads(raw.getvalue()) == "é😀\udcff"


def test_what_was_done_is_said_where_it_cannot_be_printed() -> None:
    with (
        pytest.raises(OutputError, match=r"'cat' was saved, but standard output cannot be written: Broken pipe\."),
        terminal.acknowledging("'cat' was saved"),
    ):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_note_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.note("[1/2] done")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "[1/2] done\n")


# ---- progress ----


def test_progress_is_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "PATIENCE", 0.0)
    for forced, seen in (("", False), ("1", True)):
        monkeypatch.setenv("FORCE_COLOR", forced)
        with terminal.progressing("writing cat.txt") as progress:
            progress(5, 1000)
            time.sleep(0.2)
        printed = capsys.readouterr().err
        assert ("writing cat.txt" in printed) == seen
        assert ("5/1,000 tokens" in printed) == seen


def test_a_log_file_has_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 59.0, 60.0, 61.0, 125.0, 130.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(times))
    lines = terminal.Lines("measuring", wanted=True)
    for n in range(5):
        lines.offer(f"{n}/5 steps", "" if n < 3 else "full\x1b[2J: accuracy 0.500")
    assert capsys.readouterr().err.splitlines() == [
        "measuring: 1/5 steps, 1 min",
        r"measuring: 3/5 steps, full\x1b[2J: accuracy 0.500, 2 min",
    ]
    monkeypatch.undo()
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    terminal.Lines("measuring", wanted=False).offer("2/5 steps")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shown", [True, False], ids=["terminal", "log file"])
def test_what_is_known_so_far_is_shown(
    shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "PATIENCE", 0.0)
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1" if shown else "")
    monkeypatch.setenv("COLUMNS", "200")
    with terminal.progressing("measuring", "steps") as progress:
        progress.say("[b]full: accuracy 0.500")
        progress(5, 1000)
        time.sleep(0.2)
    printed = capsys.readouterr().err
    assert "[b]full: accuracy 0.500" in printed
    assert "5/1,000 steps" in printed
    assert ("measuring: 5/1,000 steps, [b]full: accuracy 0.500, 0 min\n" in printed) != shown


def test_what_is_quick_shows_no_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with terminal.progressing("opening cat") as progress:
        progress(1, 2)
    assert capsys.readouterr().err == ""


def test_an_activity_is_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "PATIENCE", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with terminal.progressing("writing [/x]\x1b]0;x\x07"):
        time.sleep(0.2)
    assert r"writing [/x]\x1b]0;x\x07" in capsys.readouterr().err


def test_an_error_inside_ends_the_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "PATIENCE", 0.05)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(ValueError, match="broken"), terminal.progressing("opening cat"):
        raise ValueError("broken")
    time.sleep(0.15)
    assert "opening cat" not in capsys.readouterr().err


# ---- answers ----


@pytest.mark.parametrize(
    ("pieces", "answer"),
    [
        ([" \n", " a", " ", "b ", "", "\n"], "a b"),
        (["one\n", "\ntwo"], "one\n\ntwo"),
        ([], ""),
        ([" ", "\n"], ""),
        (["a"], "a"),
    ],
)
def test_an_answer_has_no_whitespace_around_it(
    pieces: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert terminal.stream_answer(pieces) == answer
    assert capsys.readouterr().out == answer + "\n"


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_an_answer_steers_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer = "a\x1b[2J\n\tb"
    assert terminal.stream_answer([answer]) == answer
    assert capsys.readouterr().out == answer + "\n"
    monkeypatch.setattr(sys, "stdout", _Screen())
    assert terminal.stream_answer([answer]) == answer
    assert sys.stdout.getvalue() == "a\\x1b[2J\n\tb\n"  # type: ignore[attr-defined]


def test_an_answer_can_be_collected_without_showing_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.stream_answer(["a", " b"], shown=False) == "a b"
    assert capsys.readouterr().out == ""


def interrupted() -> Iterator[str]:
    yield "half "
    raise KeyboardInterrupt


def test_an_interrupt_ends_the_answer_only_where_it_may(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.stream_answer(interrupted(), endable=True) == "half"
    with pytest.raises(KeyboardInterrupt):
        terminal.stream_answer(interrupted())


# ---- what is typed ----


class Typed(io.TextIOWrapper):
    """Standard input of these bytes."""

    def __init__(self, raw: bytes, *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(raw), encoding="utf-8")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_lines_end_with_the_input_or_an_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    for raw, expected in (
        (b"one\n\n  two  \n", ["one", "two"]),
        (b"one\n/exit\ntwo\n", ["one"]),
        (b"/quit\n", []),
        (b"", []),
        (b"no newline", ["no newline"]),
    ):
        monkeypatch.setattr(sys, "stdin", Typed(raw))
        assert list(terminal.read_lines("> ")) == expected


def test_lines_that_are_not_utf8_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Typed(b"\xff\xfe\n"))
    with pytest.raises(InputError, match="What was typed is not UTF-8 text"):
        list(terminal.read_lines("> "))


# ---- text ----


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain\n", "plain\n"),
        (b"\xef\xbb\xbfmarked", "marked"),
        (b"a\r\nb\rc\n", "a\nb\rc\n"),
        ("Łódź".encode(), "Łódź"),
    ],
)
def test_text_is_read_alike_from_files_and_standard_input(
    raw: bytes, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_bytes(raw)
    assert read_text(str(tmp_path / "text")) == text
    monkeypatch.setattr(sys, "stdin", Typed(raw))
    assert read_text(STDIN) == text


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "holds no text to write"),
        (b"\xef\xbb\xbf \n", "holds no text to write"),
        (b"ab\xa3", "is not UTF-8 text: byte 2 is 0xa3"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_without_text_is_named(raw: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "text"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(InputError, match=f"'{path}' {message}"):
        read_text(str(path))


def test_a_terminal_is_asked_for_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", Typed(b"typed", terminal=True))
    assert read_text(STDIN) == "typed"
    assert capsys.readouterr().err == "Type or paste the text, then press Ctrl-D.\n"


def test_a_home_folder_may_be_abbreviated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cat.txt").write_text("Muck")
    assert read_text("~/cat.txt") == "Muck"
