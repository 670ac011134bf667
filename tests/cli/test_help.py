"""The help: grouped, quick, complete, and the same on the terminal as in the docs."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from byheart.cli import COMMANDS, build_app
from scripts import help_pages
from tests.conftest import Run
from tests.samples import ROOT

NAMES = [name for commands in COMMANDS.values() for name in commands]


def loaded_by(*arguments: str) -> tuple[str, set[str]]:
    """What a command prints, and the modules it imports, in a process of its own."""
    code = (
        "import sys, byheart.cli\n"
        f"try: byheart.cli.main({list(arguments)!r})\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    return ran.stdout, set(ran.stderr.split())


def test_help_is_fast_because_it_imports_no_torch_and_no_command() -> None:
    printed, modules = loaded_by("--help")
    assert "Give a language model a memory" in printed
    assert not {"torch", "transformers", "numpy", "rich.progress", "importlib.metadata"} & modules
    own = {name.removeprefix("byheart.cli.") for name in modules if name.startswith("byheart.cli.")}
    assert own == {"printable", "streams", "threads"}


@pytest.mark.parametrize("name", ["train", "ask", "lm-eval"])
def test_the_help_of_a_command_imports_no_torch_and_no_other_command(name: str) -> None:
    printed, modules = loaded_by(name, "--help")
    assert f"Usage: byheart {name}" in printed
    assert not {"torch", "transformers", "numpy"} & modules
    assert "byheart.cli.chat" not in modules


def test_memories_are_listed_without_torch(cat: Path) -> None:
    printed, modules = loaded_by("list", "--home", str(cat.parent), "--json")
    assert json.loads(printed)[0]["texts"] == 1
    assert not {"torch", "transformers", "numpy"} & modules


def test_the_module_is_the_command() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "byheart", "--help"]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert "Usage: byheart" in ran.stdout


def test_help_groups_the_commands(run: Run) -> None:
    lines = run("--help").out.splitlines()
    places = [next(n for n, line in enumerate(lines) if f"─ {panel} ─" in line) for panel in COMMANDS]
    assert places == sorted(places)
    assert list(COMMANDS) == ["Use a memory", "Own your memories", "Train and import", "Measure", "About"]
    for panel, start, end in zip(COMMANDS, places, [*places[1:], len(lines)], strict=True):
        words = {line.split()[1] for line in lines[start + 1 : end] if len(line.split()) > 1}
        assert set(COMMANDS[panel]) <= words


def test_without_arguments_the_help_is_shown(run: Run) -> None:
    assert "Use a memory" in run().out + run().err


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_help_whose_first_line_is_listed(run: Run, name: str) -> None:
    listed = next(commands[name] for commands in COMMANDS.values() if name in commands)
    ran = run(name, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Usage: byheart {name}" in ran.out
    assert " ".join(listed.split()[:6]).replace("`", "") in " ".join(ran.out.split()).replace("`", "")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_listed_is_what_the_commands_function_says(name: str) -> None:
    (command,) = (info for info in build_app([name]).registered_commands if info.name == name)
    assert command.callback is not None
    assert (inspect.getdoc(command.callback) or "").partition("\n")[0] == command.help


@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_few_lines(name: str) -> None:
    """A command parses, calls the library and prints; what is longer belongs elsewhere."""
    if name in ("evaluate", "search", "tasks"):
        pytest.skip("has many options of its own")
    (command,) = (info for info in build_app([name]).registered_commands if info.name == name)
    assert command.callback is not None
    source = inspect.getsource(command.callback)
    body = source.partition('"""')[2].partition('"""')[2].splitlines()
    assert len(body) <= 16


def test_only_the_command_that_is_used_is_imported() -> None:
    commands = {info.name: info.callback for info in build_app(["fork"]).registered_commands}
    assert list(commands) == NAMES
    (used,) = {name for name, callback in commands.items() if callback is not commands["write"]}
    assert used == "fork"


def test_a_misspelt_command_is_answered_with_the_nearest(run: Run) -> None:
    ran = run("wirte")
    assert ran.code == 2
    assert "Did you mean" in ran.err
    assert "write" in ran.err


def test_version(run: Run) -> None:
    try:
        expected = version("byheart")
    except PackageNotFoundError:
        expected = "run from its source"
    ran = run("--version")
    assert (ran.code, ran.out) == (0, f"byheart {expected}\n")


# ---- the page in the docs ----


def test_the_page_of_the_command_line_is_not_stale(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_pages.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_page_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = help_pages.write_page()
    monkeypatch.setattr(help_pages, "write_page", lambda: page + "More.\n")
    assert help_pages.main(["--check"]) == 1
    assert "docs/reference/cli.md is stale: run python scripts/help_pages.py" in capsys.readouterr().err


def test_the_page_shows_every_command_with_every_option() -> None:
    page = help_pages.write_page()
    for panel, commands in COMMANDS.items():
        assert f"\n## {panel}\n" in page
        for name, summary in commands.items():
            section = page.partition(f"### byheart {name}\n")[2].partition("### ")[0]
            assert f"byheart {name}" in section
            assert summary in section
    assert (
        "| `--data PATH[:WEIGHT]` | JSON lines, text, a folder or a hub name (not run from the hub yet). Repeatable. |"
        in page
    )
    assert "| `--too-long refuse\\|cut` |" in page
    assert "byheart train --out VALUE [METHOD] [OPTIONS]\n" in page
    assert "byheart write NAME [FILES...] [OPTIONS]\n" in page


def test_the_page_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = help_pages.write_page()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert help_pages.write_page() == before
