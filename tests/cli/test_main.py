"""How a command ends: its exit code, and one line for what went wrong."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

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


def test_an_interrupt_is_130(end_with: Callable[[BaseException], tuple[int, str]]) -> None:
    assert end_with(KeyboardInterrupt())[0] == 130


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
