"""What a user gets who names no method, and what is said on stderr about it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byheart.model.backbone import Backbone
from byheart.protocol.codec import shelf
from byheart.protocol.codec.codec import Codec
from byheart.session import calibration
from tests.conftest import CAT, Ran, Run, save_tiny
from tests.samples import codec_of

TEXT = CAT.encode()


@pytest.fixture
def run(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """As in a process of its own, where what is logged goes to stderr: pytest would take it."""

    def ran(*arguments: object, **stdin: Any) -> Ran:
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        return run(*arguments, **stdin)

    return ran


@pytest.fixture
def uncoded(tmp_path: Path) -> Path:
    """A tiny model that has no codec."""
    return save_tiny(tmp_path / "uncoded", seed=61)


@pytest.fixture
def no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder in which nothing can be kept."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "file" / "cache"))
    return tmp_path / "file" / "cache"


def methods(run: Run) -> dict[str, str]:
    return {entry["name"]: entry["method"] for entry in run("list", "--json").json}


def test_write_and_chat_make_compact_memories(run: Run, tiny_folder: Path, no_calibration: None) -> None:
    ran = run("write", "cat", "--model", tiny_folder, stdin=TEXT)
    assert (ran.code, ran.err) == (0, "")
    assert run("chat", "talk", "--model", tiny_folder, "--max-tokens", 2, stdin=b"Hi").code == 0
    assert methods(run) == {"cat": "compact", "talk": "compact"}


def test_where_no_codec_can_be_kept_a_line_says_that_the_memory_is_full(
    run: Run, uncoded: Path, no_place: Path, no_calibration: None
) -> None:
    ran = run("write", "cat", "--model", uncoded, "--json", stdin=TEXT)
    (line,) = ran.err.splitlines()
    assert line.startswith(
        "This memory is made with method 'full' instead of 'compact', in many times more bytes: codecs"
    )
    assert str(no_place) in line
    assert ran.json["total_tokens"] == 44
    assert methods(run) == {"cat": "full"}


def test_compact_that_is_named_ends_in_an_error_instead(
    run: Run, uncoded: Path, no_place: Path, no_calibration: None
) -> None:
    ran = run("write", "cat", "--model", uncoded, "--method", "compact", stdin=TEXT)
    (line,) = ran.err.splitlines()
    assert (ran.code, ran.out) == (2, "")
    assert line.startswith("byheart: No codec can be made for this model: codecs cannot be kept in")
    assert methods(run) == {}


def test_a_calibration_is_announced_with_what_avoids_it(
    run: Run, uncoded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def make(backbone: Backbone, encoder: object, *, progress: Callable[[int, int], None]) -> Codec:
        said.append(capsys.readouterr().err)
        progress(1, 219)
        return codec_of(backbone)

    monkeypatch.setattr(calibration, "make_codec", make)
    assert run("write", "cat", "--model", uncoded, stdin=TEXT).code == 0
    (line,) = said[0].splitlines()
    assert f"no codec for model '{uncoded}' yet, so the model is calibrated first: it " in line
    assert "--method full" in line
    again = run("write", "dog", "--model", uncoded, stdin=TEXT)
    assert (again.code, again.err) == (0, "")


def test_full_that_is_named_needs_no_codec(run: Run, uncoded: Path, no_calibration: None) -> None:
    ran = run("write", "cat", "--model", uncoded, "--method", "full", stdin=TEXT)
    assert (ran.code, ran.err) == (0, "")


def test_wrong_options_are_said_before_a_calibration(run: Run, uncoded: Path, no_calibration: None) -> None:
    ran = run("write", "cat", "--model", uncoded, "-o", "times=999", stdin=TEXT)
    assert (ran.code, ran.err) == (2, "byheart: times must be from 2 to 128; it is 999.\n")


@pytest.mark.parametrize("method", ["compact", "full"])
def test_no_command_on_a_stored_memory_calibrates(
    run: Run, tiny_folder: Path, uncoded: Path, no_calibration: None, method: str
) -> None:
    model = tiny_folder if method == "compact" else uncoded
    assert run("write", "cat", "--model", model, "--method", method, stdin=TEXT).code == 0
    commands: list[list[Any]] = [
        ["ask", "cat", "Who?", "--max-tokens", 2],
        ["write", "cat"],
        ["chat", "cat", "--max-tokens", 2],
        ["show", "cat"],
        ["list"],
        ["fork", "cat", "dog"],
        ["forget", "dog", "--yes"],
    ]
    for command in commands:
        ran = run(*command, stdin=b"Hi")
        assert ran.code == 0, ran
        assert "codec" not in ran.err
    assert methods(run) == {"cat": method}


def test_a_compact_memory_without_its_codec_is_no_reason_to_calibrate(
    run: Run, tiny_folder: Path, tmp_path: Path, no_calibration: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("write", "cat", "--model", tiny_folder, stdin=TEXT).code == 0
    monkeypatch.setattr(shelf, "KNOWN", {})
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "elsewhere"))
    ran = run("ask", "cat", "Who?", "--model", tiny_folder)
    assert ran.code == 1
    assert f"the codec that it was made with: byheart calibrate {tiny_folder} --use FILE." in ran.err
    assert run("show", "cat", "--json").json["method"] == "compact"


def test_measuring_other_methods_calibrates_nothing(
    run: Run, uncoded: Path, tmp_path: Path, no_calibration: None
) -> None:
    record = {"task": "qa", "context": CAT, "question": "Who?", "answer": "Muck", "answers": ["Muck"]}
    (tmp_path / "qa.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    measured = [
        "evaluate",
        "questions",
        "--method",
        "nothing,full",
        "--data",
        tmp_path / "qa.jsonl",
        "--model",
        uncoded,
    ]
    ran = run(*measured, "--json")
    assert ran.code == 0, ran
    assert {row["method"] for row in ran.json} == {"nothing", "full"}
