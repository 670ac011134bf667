"""Every page can be reached, and every relative link resolves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.markdown import broken_links, wrong_numbers
from tests.samples import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md", *sorted(DOCS.rglob("*.md"))]
NAVIGATION = re.findall(r"([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_relative_links_resolve(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", DOCS / "explanation" / "reading-results.md"], ids=lambda p: p.name
)
def test_a_number_with_a_link_is_that_of_its_row(page: Path) -> None:
    assert len(re.findall(r"\[-?[\d.]+\]\([^)]*results\.md#", page.read_text(encoding="utf-8"))) > 10
    assert wrong_numbers(page) == []


def test_rows_of_results_can_be_told_apart() -> None:
    names = re.findall(r'<a id="([^"]+)"></a>', (DOCS / "explanation" / "results.md").read_text(encoding="utf-8"))
    assert len(names) == len(set(names)) > 100


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(NAVIGATION) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_no_figure_lies_around_unused() -> None:
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [figure.name for figure in DOCS.rglob("*.svg") if figure.name not in shown] == []


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_files_named_in_prose_exist(page: Path) -> None:
    """Scripts, recipes and results that a page sends its reader to; comments may say what writes a page."""
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"(?<![\w/.-])((?:benchmarks|scripts|recipes|examples|byheart)/[\w./-]+\.\w+)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_files_named_in_docstrings_exist() -> None:
    sources = [path for folder in ("byheart", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]
    named = {name for path in sources for name in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
