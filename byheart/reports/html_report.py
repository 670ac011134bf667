"""A comparison as one HTML page that needs no network, no script and no other file, and its tables as Markdown.

It knows headings, pictures and tables, not what they are about; what stands around them, and how it looks, is in
``page.html``. All text is escaped here and nowhere else.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of a table: a text, and after it what is less important, such as an interval."""

    text: str
    rest: str = ""


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


@dataclass(frozen=True)
class Chapter:
    """Pictures and tables under one title."""

    title: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


# ---- HTML ----


def html(title: str, lead: Sequence[str], chapters: Sequence[Chapter]) -> str:
    """The whole page."""
    links = "".join(f'<li><a href="#{n}">{escape(chapter.title)}</a></li>' for n, chapter in _numbered(chapters))
    body = "\n".join(_chapter(n, chapter) for n, chapter in _numbered(chapters))
    paragraphs = "\n".join(f"<p>{escape(text)}</p>" for text in lead)
    page = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return page.substitute(title=escape(title), lead=paragraphs, links=links, body=body)


def _numbered(chapters: Sequence[Chapter]) -> list[tuple[str, Chapter]]:
    return [(f"chapter-{n}", chapter) for n, chapter in enumerate(chapters, start=1)]


def _chapter(anchor: str, chapter: Chapter) -> str:
    pictures = f'<div class="pictures">{"".join(map(_picture, chapter.pictures))}</div>' if chapter.pictures else ""
    head = f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(chapter.title)}</h2>'
    return "\n".join([head, pictures, *map(_table, chapter.tables), "</section>"])


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.svg.encode()).decode()
    width, height = _shape(picture.svg)
    image = (
        f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(picture.alt)}" width="{width}" height="{height}">'
    )
    return f"<figure>{image}<figcaption>{escape(picture.caption)}</figcaption></figure>\n"


def _shape(svg: str) -> tuple[int, int]:
    """Width and height, so that nothing jumps when the picture comes."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    return (round(float(found[1])), round(float(found[2]))) if found else (0, 0)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    body = "\n".join(
        f'<tr><th scope="row">{_breakable(name.text)}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in table.rows
    )
    kind = ' class="numbers"' if table.numbers else ""
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption)}">'
    caption = f"<caption>{escape(table.caption)}</caption>"
    return f"{box}<table{kind}>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"


def _breakable(name: str) -> str:
    """A name that may continue on the next line after its punctuation rather than inside a word."""
    return "<wbr>".join(escape(part) for part in re.split(r"(?<=[:;=/_.,-])", name))


def _cell(cell: Cell) -> str:
    return f"{escape(cell.text)} <small>{escape(cell.rest)}</small>" if cell.rest else escape(cell.text)


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
