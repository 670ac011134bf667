"""What the other tests read out of a page: blocks, commands, links and headings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.markdown import anchors, blocks, broken_links, commands, links

PAGE = """# A page

[other](other.md), ![figure](figure.svg) and `[code](no.md)`.

## Two words, once

```python
x = [1](2)
```

```python notest
skipped
```

```sh
make demo  # a comment
byheart ask cat \\
    "Who is it?"
```
"""


def test_blocks_are_found_by_language_and_skipped_where_marked() -> None:
    assert blocks(PAGE, "python") == ["x = [1](2)\n"]


def test_a_continued_line_is_one_command_without_its_comment() -> None:
    assert commands(PAGE) == [["make", "demo"], ["byheart", "ask", "cat", "Who is it?"]]


def test_links_in_code_are_no_links() -> None:
    assert links(PAGE) == ["other.md", "figure.svg"]


def test_headings_are_linked_without_punctuation() -> None:
    assert anchors(PAGE) == {"a-page", "two-words-once"}


@pytest.mark.parametrize("link", ["gone.md", "#gone", "there.md#gone", "folder/gone.svg"])
def test_a_link_to_nothing_is_found(link: str, tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# There\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n[this]({link}), [that](there.md#there), [here](#here), [far](https://example.org/gone)")
    assert broken_links(page) == [link]
