"""A comparison as one HTML page that needs no network, no script and no other file, and its tables as Markdown.

It knows headings, pictures and tables, not what they are about; what stands around them, and how it looks, is in
``page.html``, which escapes all text.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined


class Cell(NamedTuple):
    """A cell of a table: a text, and after it what is less important, such as an interval."""

    text: str
    rest: str = ""

    @property
    def parts(self) -> list[str]:
        """The text, cut where it may continue on the next line: after its punctuation rather than inside a word."""
        return re.split(r"(?<=[:;=/_.,-])", self.text)


@dataclass(frozen=True)
class Table:
    """The first column names what a row is about; ``numbers`` says whether the others are numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: bool = True


@dataclass(frozen=True)
class Picture:
    """A figure, its alternative text, and the caption below."""

    svg: str
    alt: str
    caption: str

    @property
    def data(self) -> str:
        """The figure as it stands in a page."""
        return base64.b64encode(self.svg.encode()).decode()

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height, so that nothing jumps when the picture comes."""
        found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', self.svg)
        return (round(float(found[1])), round(float(found[2]))) if found else (0, 0)


@dataclass(frozen=True)
class Chapter:
    """Pictures and tables under one title."""

    title: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


def html(title: str, lead: Sequence[str], chapters: Sequence[Chapter]) -> str:
    """The whole page."""
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined).from_string(page)
    return template.render(title=title, lead=lead, chapters=chapters)


# ---- Markdown ----


def markdown(title: str, lead: Sequence[str], chapters: Sequence[Chapter]) -> str:
    """The tables and the captions of the pictures."""
    lines = [f"# {_plain(title)}", *(f"\n{_plain(text)}" for text in lead)]
    for chapter in chapters:
        lines.append(f"\n## {_plain(chapter.title)}\n")
        lines += [f"- {_plain(picture.caption)}" for picture in chapter.pictures]
        for table in chapter.tables:
            lines += [*[""] * bool(chapter.pictures), *markdown_table(table)]
    return "\n".join([*lines, ""])


def markdown_table(table: Table) -> list[str]:
    """Its lines."""
    rule = ["---", *["--:" if table.numbers else "---"] * (len(table.header) - 1)]
    rows = [
        [_code(row[0].text), *(_plain(f"{cell.text} {cell.rest}".strip()) for cell in row[1:])] for row in table.rows
    ]
    return [f"| {' | '.join(cells)} |" for cells in ([_plain(name) for name in table.header], rule, *rows)]


def anchor(*names: str) -> str:
    """What something of these names is called in a link."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(names).lower()).strip("-")


def _plain(text: str) -> str:
    """Text in which Markdown sees no markup."""
    line = escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*|~#]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def _code(text: str) -> str:
    """A name as it is typed, between more backticks than any run of them in it."""
    line = " ".join(text.split()).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    edge = " " if "`" in line else ""
    return f"{fence}{edge}{line}{edge}{fence}"
