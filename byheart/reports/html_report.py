"""A comparison as one HTML page that needs no network, no script and no other file, and its tables as Markdown.

It knows headings, pictures and tables, not what they are about. All text is escaped here and nowhere else.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
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


_STYLE = """
:root { --ink: #1c1c1c; --soft: #5a5a5a; --line: #dcdcdc; --pale: #f6f6f4; --link: #00507d; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: #fff; color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, "Liberation Sans", sans-serif; overflow-wrap: anywhere; }
main, header, footer { max-width: 80rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 3rem); }
header { padding-top: clamp(1.5rem, 5vw, 3.5rem); }
h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); line-height: 1.15; letter-spacing: -0.015em; margin: 0 0 0.5rem; }
h2 { font-size: 1.4rem; line-height: 1.25; letter-spacing: -0.01em; margin: 3.25rem 0 0; padding-top: 1.1rem;
  border-top: 2px solid var(--ink); scroll-margin-top: 0.5rem; }
p { margin: 0.4rem 0; max-width: 46rem; }
header p:first-of-type { font-size: 1.08rem; }
header p + p, figcaption, caption, footer { color: var(--soft); font-size: 0.9rem; line-height: 1.5; }
a { color: var(--link); text-underline-offset: 0.15em; }
a:focus-visible, .scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0.15rem 1.25rem; margin: 1.1rem 0 0; padding: 0; }
nav a { display: inline-block; padding: 0.3rem 0; }
.pictures { display: grid; gap: 2rem 2.5rem; margin: 1.5rem 0 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)); }
figure { margin: 0; max-width: 35rem; min-width: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: 0.5rem; }
.scroll { overflow-x: auto; margin-top: 1.25rem; max-width: 100%; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; min-width: 100%; }
caption { text-align: left; padding-bottom: 0.4rem; position: sticky; left: 0; }
th, td { text-align: left; vertical-align: top; padding: 0.42rem 0.9rem 0.42rem 0; border-top: 1px solid var(--line); }
thead th { border-top: 0; border-bottom: 1.5px solid var(--ink); font-weight: 600; vertical-align: bottom;
  white-space: nowrap; }
tbody tr:first-child > * { border-top: 0; }
tbody th { font-weight: 600; min-width: 8rem; max-width: 22rem; }
tr > :first-child { position: sticky; left: 0; background: #fff; padding-right: 1.1rem; }
td { min-width: 4.5rem; max-width: 26rem; }
.numbers td { white-space: nowrap; }
tbody tr:hover > * { background: var(--pale); }
small { color: var(--soft); font-size: 0.86em; }
footer { margin-top: 3.5rem; padding-top: 1rem; padding-bottom: 3rem; }
@media (max-width: 40rem) { table { font-size: 0.84rem; } tbody th { max-width: 9rem; } }
@media print { .scroll { overflow: visible; } figure, tr { break-inside: avoid; } nav { display: none; } }
"""


# ---- HTML ----


def html(title: str, lead: Sequence[str], chapters: Sequence[Chapter]) -> str:
    """The whole page."""
    links = "".join(f'<li><a href="#{n}">{escape(chapter.title)}</a></li>' for n, chapter in _numbered(chapters))
    body = "\n".join(_chapter(n, chapter) for n, chapter in _numbered(chapters))
    paragraphs = "\n".join(f"<p>{escape(text)}</p>" for text in lead)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{paragraphs}
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
<footer>Made by <code>byheart compare</code>.</footer>
</body>
</html>
"""


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
