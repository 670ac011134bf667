"""A page and its tables: whatever stands in them is text, and nothing is fetched."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest

from byheart.reports.html_report import Cell, Chapter, Picture, Table, html, markdown, markdown_table

SVG = '<svg viewBox="0 0 320.4 200.6"></svg>'
NASTY = ["<b>", "a & b", 'say "hi"', "it's", "</style>", "<script>alert(1)</script>", "&amp;", "`code`", "a|b", "*x*"]


class Texts(HTMLParser):
    """The elements of a page, and the texts in them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(page: str) -> Texts:
    found = Texts()
    found.feed(page)
    assert found.open == []
    return found


def page(*chapters: Chapter, title: str = "T", lead: tuple[str, ...] = ("lead",)) -> str:
    return html(title, lead, chapters)


# ---- the page ----


def test_every_element_is_closed_and_there_is_no_script() -> None:
    table = Table("caption", ["method", "f1"], [[Cell("full"), Cell("0.5", "[0.4, 0.6]")]])
    found = parsed(page(Chapter("one", [Picture(SVG, "alt", "caption")], [table]), Chapter("two")))
    assert found.tags.count("section") == 2
    assert {"main", "header", "footer", "nav", "table", "figure"} <= set(found.tags)
    assert "script" not in found.tags


@pytest.mark.parametrize("text", NASTY)
def test_text_stays_text_wherever_it_stands(text: str) -> None:
    table = Table(text, [text, text], [[Cell(text), Cell(text, text)]])
    made = page(Chapter(text, [Picture(SVG, text, text)], [table]), title=text, lead=(text,))
    plain = parsed(
        page(Chapter("x", [Picture(SVG, "x", "x")], [Table("x", ["x", "x"], [[Cell("x"), Cell("x", "x")]])]))
    )
    found = parsed(made)
    # The same elements as where the text has nothing special.
    assert [tag for tag in found.tags if tag != "wbr"] == [tag for tag in plain.tags if tag != "wbr"]
    assert "".join(found.texts).count(text) >= 8


def test_the_contents_lead_to_every_chapter() -> None:
    made = page(Chapter("one"), Chapter("two"), Chapter("three"))
    links = re.findall(r'<a href="#([^"]+)">', made)
    assert links == ["chapter-1", "chapter-2", "chapter-3"]
    for link in links:
        assert f'<h2 id="{link}">' in made


def test_a_picture_stands_in_the_page_with_its_size() -> None:
    made = page(Chapter("one", [Picture(SVG, "alt", "caption")]))
    data = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', made)
    assert data is not None
    assert base64.b64decode(data[1]).decode() == SVG
    assert 'width="320" height="201"' in made


def test_a_picture_without_a_size_is_shown_too() -> None:
    assert 'width="0" height="0"' in page(Chapter("one", [Picture("<svg/>", "alt", "caption")]))


def test_a_chapter_without_pictures_has_no_place_for_them() -> None:
    assert '<div class="pictures">' not in page(Chapter("one"))


def test_a_long_name_can_be_broken_at_its_punctuation() -> None:
    table = Table("t", ["method"], [[Cell("window:sinks=1;recent=15")]])
    assert "window:<wbr>sinks=<wbr>1;<wbr>recent=<wbr>15" in page(Chapter("one", tables=[table]))


@pytest.mark.parametrize("numbers", [True, False])
def test_a_table_says_whether_it_holds_numbers(numbers: bool) -> None:
    made = page(Chapter("one", tables=[Table("t", ["a"], [[Cell("x")]], numbers=numbers)]))
    assert ('<table class="numbers">' in made) == numbers


# ---- Markdown ----


def test_a_table_in_markdown() -> None:
    table = Table("t", ["method", "f1"], [[Cell("full"), Cell("0.5", "[0.4, 0.6]")], [Cell("nothing"), Cell("0")]])
    assert markdown_table(table) == [
        "| method | f1 |",
        "| --- | --: |",
        "| `full` | 0.5 [0.4, 0.6] |",
        "| `nothing` | 0 |",
    ]


def test_a_table_of_words_is_aligned_at_the_left() -> None:
    assert markdown_table(Table("t", ["a", "b"], [], numbers=False))[1] == "| --- | --- |"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("a`b", "`` a`b ``"),
        ("a``b", "``` a``b ```"),
        ("a|b", "`a\\|b`"),
        ("two\nlines", "`two lines`"),
    ],
)
def test_a_name_is_code_whatever_is_in_it(name: str, code: str) -> None:
    assert markdown_table(Table("t", ["a"], [[Cell(name)]]))[2] == f"| {code} |"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("*a*", r"\*a\*"),
        ("_a_", r"\_a\_"),
        ("snake_case", "snake_case"),
        ("<b>", "&lt;b&gt;"),
        ("# a", r"\# a"),
        ("a\nb", "a b"),
    ],
)
def test_text_in_markdown_is_no_markup(text: str, escaped: str) -> None:
    assert markdown_table(Table("t", ["a", text], []))[0] == f"| a | {escaped} |"
    assert f"# {escaped}\n" in markdown(text, [], [])


def test_captions_stand_before_the_tables() -> None:
    chapter = Chapter("one", [Picture(SVG, "alt", "first figure")], [Table("t", ["a"], [[Cell("x")]])])
    lines = markdown("T", ["lead"], [chapter, Chapter("two")]).splitlines()
    assert lines == [
        "# T",
        "",
        "lead",
        "",
        "## one",
        "",
        "- first figure",
        "",
        "| a |",
        "| --- |",
        "| `x` |",
        "",
        "## two",
        "",
    ]
