"""How a command ends: its exit code, and one line for what went wrong."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byheart.cli import COMMANDS, build_app, list as list_command, main
from byheart.errors import (
    BudgetError,
    InputError,
    ModelError,
    StoreError,
    TrainingError,
    UnknownNameError,
    UsageError,
)
from tests.conftest import Run
from tests.samples import ROOT


@pytest.fixture
def end_with(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], tuple[int, str]]:
    """The exit code and the line of a command that ends with an error."""

    def ended(error: BaseException) -> tuple[int, str]:
        def fail() -> None:
            raise error

        monkeypatch.setattr(list_command, "list_memories", fail)
        ran = run("list")
        assert ran.out == ""
        return ran.code, ran.err

    return ended


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("Wrong."), 2),
        (UnknownNameError("method", "windw", ["window"]), 2),
        (BudgetError("window", 1, 2), 2),
        (InputError("Wrong."), 1),
        (ModelError("Wrong."), 1),
        (StoreError("Wrong."), 1),
        (TrainingError("Wrong."), 1),
        (OSError(28, "No space left on device"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_argument_that_cannot_be_used_is_2_and_every_other_error_1(
    end_with: Callable[[BaseException], tuple[int, str]], error: Exception, code: int
) -> None:
    assert end_with(error) == (code, f"byheart: {error}\n")


def test_an_error_is_one_line_whatever_it_holds(end_with: Callable[[BaseException], tuple[int, str]]) -> None:
    assert end_with(ModelError("First line.\n\n  Second\tline.\n")) == (1, "byheart: First line. Second line.\n")


def test_an_error_steers_no_terminal(end_with: Callable[[BaseException], tuple[int, str]]) -> None:
    assert end_with(ModelError("\x1b]52;c;cm0=\x07")) == (1, "byheart: \\x1b]52;c;cm0=\\x07\n")


def test_an_interrupt_is_130(end_with: Callable[[BaseException], tuple[int, str]]) -> None:
    assert end_with(KeyboardInterrupt()) == (130, "byheart: Interrupted.\n")


def test_too_little_memory_is_no_mistake_in_byheart(end_with: Callable[[BaseException], tuple[int, str]]) -> None:
    assert end_with(MemoryError()) == (
        1,
        "byheart: There is not enough memory for this; give less at once, or smaller options.\n",
    )


# ---- the process ----


def _start(*arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "byheart", *arguments]
    return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, **streams)


# Whatever is imported, the moment comes while it is.
_INTERRUPTED_WHILE_IMPORTING = """
import builtins, os, signal, sys
imported, module = builtins.__import__, sys.argv[1]

def interrupting(name, *rest, **named):
    if name == module:
        os.kill(os.getpid(), signal.SIGINT)
    return imported(name, *rest, **named)

builtins.__import__ = interrupting
sys.argv[1:] = ["list", "--home", sys.argv[2]]
from byheart.__main__ import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are others there")
@pytest.mark.parametrize("module", ["byheart.cli", "rich.table", "pydantic", "byheart.errors"])
def test_an_interrupt_while_modules_are_imported_is_one_line(module: str, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _INTERRUPTED_WHILE_IMPORTING, module, str(tmp_path)]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (130, "")
    assert ran.stderr in ("", "byheart: Interrupted.\n")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is full")
def test_what_was_done_is_said_where_standard_output_is_full_closed_or_gone(cat: Path) -> None:
    gone, pipe = os.pipe()
    os.close(gone)
    with open("/dev/full", "wb") as full:
        for number, output in enumerate((full, pipe)):
            _, said = (ran := _start("fork", "cat", f"dog-{number}", stdout=output)).communicate()
            assert ran.returncode == 1
            assert said.startswith(f"byheart: 'cat' was copied to 'dog-{number}', but standard output cannot".encode())
            assert said.count(b"\n") == 1
    os.close(pipe)
    command = f"exec {sys.executable} -m byheart forget cat --yes >&- <&-"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(["sh", "-c", command], env=environ, stderr=subprocess.PIPE, check=False)
    assert (ran.returncode, cat.exists()) == (1, False)
    assert ran.stderr == b"byheart: 'cat' was forgotten, but standard output cannot be written: Bad file descriptor.\n"


def test_what_an_encoding_lacks_is_shown_as_an_escape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    out, said = (ran := _start("list", "--home", str(tmp_path / "żółw"), stdout=subprocess.PIPE)).communicate()
    assert (ran.returncode, said) == (0, b"")
    assert rb"\u017c\xf3\u0142w" in out


def test_a_mistake_in_byheart_itself_is_shown_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(list_command, "list_memories", fail)
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        main(["list"])


def test_the_arguments_of_the_process_are_used_where_none_are_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["byheart", "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    assert capsys.readouterr().out.startswith("byheart ")


@pytest.mark.parametrize("name", [name for commands in COMMANDS.values() for name in commands])
def test_every_command_is_a_function_of_the_module_named_for_it(name: str) -> None:
    (command,) = (info.callback for info in build_app([name]).registered_commands if info.name == name)
    assert command is not None
    module = importlib.import_module(command.__module__)
    assert getattr(module, command.__name__) is command
    if name not in ("evaluate", "tasks", "search"):
        assert module.__name__.rpartition(".")[2].rstrip("_") == name.replace("-", "_")
