"""Text of others is shown in its line, and steers no terminal."""

from __future__ import annotations

import json
import logging

import pytest

from byheart.cli.printable import (
    PrintableFormatter,
    error_line,
    printable,
    printable_answer,
    printable_json,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("żółw, 😀 and [/bold]", "żółw, 😀 and [/bold]"),
        ("\x1b]52;c;cm0=\x07", r"\x1b]52;c;cm0=\x07"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("txt.\u202eexe", r"txt.\u202eexe"),
        ("\u2066\u200f\u2028", r"\u2066\u200f\u2028"),
        ("\udcff.txt", r"\udcff.txt"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_every_control_character_is_escaped() -> None:
    raw = "".join(map(chr, [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0xD800, 0xE000)]))
    for shown in (printable(raw), printable_json(json.dumps(raw, ensure_ascii=False))):
        assert shown.isascii()
        assert shown.isprintable()


def test_an_answer_keeps_its_lines_and_its_script() -> None:
    assert printable_answer("a\n\tb \u200f\u05d0") == "a\n\tb \u200f\u05d0"
    assert printable_answer("\x1b[2J\x9b1A\r") == r"\x1b[2J\x9b1A\r"


def test_json_means_the_same() -> None:
    value = {"source": "\x1b\x9b\x7f\u202e\udcff\u2028 żółw 😀"}
    shown = printable_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(shown) == value
    assert shown.isprintable()
    assert "żółw 😀" in shown


def test_an_endless_message_is_cut_in_its_middle() -> None:
    line = error_line(f"It is '{'[' * 100_000}';\n leave that out.")
    assert len(line) < 2100
    assert line.startswith("It is '[[")
    assert line.endswith("[[['; leave that out.")


def test_what_is_logged_is_printable() -> None:
    record = logging.LogRecord("byheart", logging.WARNING, "", 1, "Model '%s'\nis new.", ("\x1b[2J",), None)
    assert PrintableFormatter().format(record) == "Model '\\x1b[2J'\nis new."
