"""The sizes that are checked are those of the files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts import size

SOURCE = '''"""A module."""


def outer(a):
    """Says what it does."""

    @decorated
    def inner():
        return a

    return inner


class Thing:
    async def method(self):
        pass
'''


def test_functions_are_counted_without_decorators_and_each_on_its_own() -> None:
    found = {function.name: function.lines for function in size.find_functions(ast.parse(SOURCE))}
    assert found == {"outer": 8, "inner": 2, "method": 2}


def test_code_is_what_is_left_without_docstrings_comments_and_blank_lines() -> None:
    assert size.code_lines(SOURCE) == 8
    assert size.code_lines('# why\n\nx = """\ntext\n"""  # so\n') == 3


def test_a_file_is_as_long_as_it_is_read() -> None:
    measured = size.measure(Path(size.__file__).parent.parent / "byheart" / "errors.py")
    assert measured.name == "byheart/errors.py"
    assert measured.lines == len(Path("byheart/errors.py").read_text(encoding="utf-8").splitlines())
    assert "require_positive" in {function.name for function in measured.functions}


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 90, 0), ([7], 90, 7), ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 90, 9), ([3, 1, 2], 50, 2), ([1, 100], 51, 100)],
)
def test_a_percentile_is_one_of_the_values(values: list[int], percent: int, expected: int) -> None:
    assert size.percentile(values, percent) == expected


def file(lines: int, *functions: int) -> size.File:
    return size.File("byheart/x.py", lines, lines, [size.Function("f", count) for count in functions])


def test_what_is_above_a_limit_is_told() -> None:
    limits = {limit.name: limit for limit in size.summarise([file(401, 10, 36), file(100, 10), file(0)])}
    assert limits["largest file"].value == 401
    assert {name for name, limit in limits.items() if limit.exceeded} == {
        "largest file",
        "file median",
        "function 90th percentile",
    }


def test_an_empty_file_does_not_lower_the_median() -> None:
    limits = {limit.name: limit.value for limit in size.summarise([file(0), file(0), file(30, 4)])}
    assert (limits["file median"], limits["function median"]) == (30, 4)
    assert all(limit.value == 0 for limit in size.summarise([]))


def test_the_package_is_within_its_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert size.main(["--check"]) == 0
    shown = capsys.readouterr().out
    assert "largest file" in shown
    assert "too long" not in shown


def test_without_a_check_a_long_file_is_only_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "measure", lambda path: file(500, 50))
    assert size.main([]) == 0
    assert size.main(["--check"]) == 1
