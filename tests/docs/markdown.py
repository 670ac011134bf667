"""Blocks of code, links and headings of Markdown pages."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(text: str, *languages: str) -> list[str]:
    """The blocks of code in these languages; a block with a word after its language is not to be run."""
    return [code for language, note, code in _BLOCK.findall(text) if language in languages and not note]


def commands(text: str) -> list[list[str]]:
    """The words of every line in the shell blocks; continued lines are one, comments are none."""
    lines = "\n".join(blocks(text, "sh", "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def links(text: str) -> list[str]:
    """The targets of the links and images outside code."""
    prose = re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", text))
    return _LINK.findall(prose)


def anchors(text: str) -> set[str]:
    """What can be linked to: headings, lowercase, without punctuation, words joined by hyphens; and rows with an id."""
    titles = re.findall(r"^#+ (.*)$", _BLOCK.sub("", text), re.MULTILINE)
    headings = {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles}
    return headings | set(re.findall(r'<a id="([^"]+)"></a>', text))


def wrong_numbers(page: Path) -> list[str]:
    """Numbers with a link to a row of a table that does not hold them, rounded as they are."""
    wrong = []
    found = re.findall(r"\[(-?[\d,.]+)\]\(([^)\s#]+)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for number, path, anchor in found:
        text = (page.parent / path).read_text(encoding="utf-8")
        rows = [line for line in text.splitlines() if f'<a id="{anchor}"></a>' in line]
        held = [float(each.replace(",", "")) for each in re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?", " ".join(rows))]
        # Rounded from what the row rounds to a thousandth.
        half = 0.5 * 10 ** -len(number.partition(".")[2]) + 0.0005
        if not any(abs(float(number) - each) <= half for each in held):
            wrong.append(f"{number} at {anchor}")
    return wrong


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere: no such file, or no such heading in it."""
    broken = []
    for link in links(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        is_missing = not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8")))
        if not re.match(r"\w+:", link) and is_missing:
            broken.append(link)
    return broken
