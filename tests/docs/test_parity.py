"""docs/parity.md is in step with the code: what it names can be typed, called and run."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import pytest
import typer

from byheart.cli import COMMANDS, build_app
from byheart.cli.options import method_options
from byheart.evaluation import tasks
from byheart.evaluation.method_spec import DECODING_OPTIONS, MethodSpec, split_budget, split_specs
from byheart.methods import BUILT_IN, defaults, find
from tests.samples import ROOT

PAGE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
ROWS = 137
# Only ever lowered.
MOST_OPEN = 1
# How a method is measured, beside its own options.
MEASURED = {*DECODING_OPTIONS, "control", "model"}


class Row(NamedTuple):
    """A line of the table: what it is, what does it, and what shows that it does."""

    number: int
    what: str
    how: str
    shown: str

    @property
    def is_open(self) -> bool:
        return self.how.startswith("open")

    @property
    def is_answered(self) -> bool:
        return self.how.startswith("answered: ")

    @property
    def spans(self) -> list[str]:
        """What stands in backticks."""
        return re.findall(r"`([^`]+)`", f"{self.how} {self.shown}")


def read(page: str) -> Iterator[Row]:
    for line in page.splitlines():
        if re.match(r"\| \d+ \|", line):
            number, what, how, shown = (cell.strip() for cell in line.strip("|").split(" | "))
            yield Row(int(number), what, how, shown)


TABLE = list(read(PAGE))
COMMANDS_SHOWN = sorted({span for row in TABLE for span in row.spans if span.startswith("byheart ")})
NAMES_SHOWN = sorted({span for row in TABLE for span in row.spans if re.match(r"byheart\.\w", span)})
TESTS_SHOWN = sorted({span for row in TABLE for span in row.spans if span.startswith("tests/")})
SCRIPTS_SHOWN = sorted({span for row in TABLE for span in row.spans if span.startswith("python ")})
FILES_SHOWN = sorted({s for row in TABLE for s in row.spans if re.match(r"(benchmarks|docs|recipes|examples)/", s)})


@cache
def group() -> Any:
    return typer.main.get_command(build_app([name for commands in COMMANDS.values() for name in commands]))


def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def resolve(dotted: str) -> Any:
    """A name of byheart, by the modules that it stands in."""
    found: Any = importlib.import_module("byheart")
    for part in dotted.split(".")[1:]:
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(f"{found.__name__}.{part}")
    return found


def unknown_options(kind: type, given: Mapping[str, Any], more: set[str]) -> set[str]:
    return set(given) - set(defaults(kind)) - more


# ---- the table ----


def test_every_row_is_there_once() -> None:
    assert [row.number for row in TABLE] == list(range(1, ROWS + 1))


def test_what_is_open_is_counted_and_becomes_less() -> None:
    (said,) = re.findall(r"\*\*(\d+) rows? (?:is|are) open\*\*", PAGE)
    assert sum(row.is_open for row in TABLE) == int(said) <= MOST_OPEN


@pytest.mark.parametrize("row", [row for row in TABLE if not row.is_open], ids=lambda row: str(row.number))
def test_a_row_says_what_does_it_and_what_shows_it(row: Row) -> None:
    if row.is_answered:
        assert len(row.how) > len("answered: ") + 20
        return
    assert re.search(r"`[^`]+`", row.how), "it names no command, function or option"
    assert any(re.match(r"(tests|benchmarks|docs)/", span) for span in re.findall(r"`([^`]+)`", row.shown)), row.shown


# ---- what it names ----


@pytest.mark.parametrize("shown", TESTS_SHOWN)
def test_tests_exist(shown: str) -> None:
    path, _, name = shown.partition("::")
    assert not name or name in functions(path)
    assert (ROOT / path).exists()


@pytest.mark.parametrize("shown", FILES_SHOWN)
def test_files_exist(shown: str) -> None:
    assert (ROOT / shown).exists()


@pytest.mark.parametrize("shown", NAMES_SHOWN)
def test_python_names_resolve_and_take_what_they_are_given(shown: str) -> None:
    call = ast.parse(shown, mode="eval").body
    # The first function of a chain: `byheart.load("smollm2").write(text)`.
    while isinstance(call, ast.Call | ast.Attribute) and not re.fullmatch(r"[\w.]+", ast.unparse(call)):
        inner = call.func if isinstance(call, ast.Call) else call.value
        if isinstance(call, ast.Call) and re.fullmatch(r"[\w.]+", ast.unparse(inner)):
            function = resolve(ast.unparse(inner))
            inspect.signature(function).bind_partial(
                *call.args, **{keyword.arg: None for keyword in call.keywords if keyword.arg}
            )
            return
        call = inner
    resolve(shown)


@pytest.mark.parametrize("shown", SCRIPTS_SHOWN)
def test_scripts_have_their_options(shown: str) -> None:
    path, *arguments = shlex.split(shown)[1:]
    text = (ROOT / path).read_text(encoding="utf-8")
    assert [flag for flag in arguments if flag.startswith("--") and flag not in text] == []


@pytest.mark.parametrize("shown", COMMANDS_SHOWN)
def test_commands_parse_and_their_options_exist(shown: str) -> None:
    name, *arguments = shlex.split(shown)[1:]
    given = group().commands[name].make_context(name, list(arguments)).params
    options = method_options(given.get("option"))
    if name in ("evaluate", "search"):
        kinds = [tasks.find(task) for task in given.get("tasks") or [given["task"]]]
        assert [key for key in options if not any(key in defaults(kind) for kind in kinds)] == []
        specs = [MethodSpec.of(split_budget(spec)[0], 0, 1) for spec in split_specs(given["method"])]
        # A name with a slash is the folder of a trained one.
        for spec in specs:
            if "/" not in spec.name:
                assert unknown_options(find(spec.name), spec.options, MEASURED) == set()
    elif given.get("method") in BUILT_IN:
        assert unknown_options(find(given["method"]), options, set()) == set()
