"""Show how long byheart's files and functions are, and whether they are short enough to be read in one go.

A line is a line of the file, docstrings and blank lines included: what a reader scrolls through. With ``--check`` the
exit status is 1 when a limit is exceeded. Lines of code, by folder, leave out docstrings, comments and blank lines.
"""

from __future__ import annotations

import ast
import io
import math
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PACKAGE = Path(__file__).resolve().parent.parent / "byheart"
LAYOUT = {
    *(tokenize.ENCODING, tokenize.COMMENT, tokenize.NEWLINE, tokenize.NL),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Function:
    """One function or method, decorators left out, nested functions counted in their own right too."""

    name: str
    lines: int


@dataclass(frozen=True)
class File:
    """One module of the package."""

    name: str
    lines: int
    code: int
    functions: list[Function]

    @property
    def folder(self) -> str:
        """The folder of the package that it lies in, or its own name."""
        return self.name.split("/")[1]


@dataclass(frozen=True)
class Limit:
    """A measure of the package and the most it may be."""

    name: str
    value: float
    most: int

    @property
    def exceeded(self) -> bool:
        return self.value > self.most


def find_functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield Function(node.name, node.end_lineno - node.lineno + 1)


def code_lines(source: str) -> int:
    """How many lines hold code: no blank line, no comment, no docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def measure(path: Path) -> File:
    source = path.read_text(encoding="utf-8")
    functions = list(find_functions(ast.parse(source)))
    name = path.relative_to(PACKAGE.parent).as_posix()
    return File(name, len(source.splitlines()), code_lines(source), functions)


def percentile(values: list[int], percent: int) -> int:
    """The smallest value that ``percent`` % of the values do not exceed; 0 when there are none."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1] if values else 0


def summarise(files: list[File]) -> list[Limit]:
    lines = [file.lines for file in files if file.lines]
    functions = [function.lines for file in files for function in file.functions]
    return [
        Limit("file median", median(lines or [0]), 150),
        Limit("largest file", max(lines, default=0), 400),
        Limit("function median", median(functions or [0]), 10),
        Limit("function 90th percentile", percentile(functions, 90), 35),
    ]


def show(files: list[File], limits: list[Limit]) -> None:
    print("lines  longest function")
    for file in sorted(files, key=lambda file: file.lines, reverse=True):
        longest = max(file.functions, key=lambda function: function.lines, default=Function("", 0))
        print(f"{file.lines:5}  {longest.lines:3} {longest.name:28} {file.name}")
    print(f"{sum(file.lines for file in files):5}  in {len(files)} files\n")
    code: Counter[str] = Counter()
    for file in files:
        code[file.folder] += file.code
    for folder, lines in code.most_common():
        print(f"{lines:5}  of code in {folder}")
    print(f"{code.total():5}  of code\n")
    for limit in limits:
        print(f"{limit.name:26} {limit.value:5g}  of {limit.most:3}{'  too long' if limit.exceeded else ''}")


def main(arguments: list[str]) -> int:
    files = [measure(path) for path in PACKAGE.rglob("*.py")]
    limits = summarise(files)
    show(files, limits)
    return int("--check" in arguments and any(limit.exceeded for limit in limits))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
