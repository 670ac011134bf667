"""Tables and figures of the pages are those of the committed result files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gap, results, retention, tables


@pytest.mark.parametrize("marker", sorted(tables.TABLES))
def test_tables_are_those_of_the_result_files(marker: str) -> None:
    text = tables.PAGES[marker].read_text(encoding="utf-8")
    assert tables.put(text, marker, tables.TABLES[marker](tables.source(marker))) == text


@pytest.mark.parametrize("marker", ["gap", "gap-lengths"])
def test_tables_of_the_gap_are_those_of_the_result_files(marker: str) -> None:
    text = gap.PAGE.read_text(encoding="utf-8")
    assert tables.put(text, marker, gap.gap_table(tables.source(marker))) == text


def test_the_table_of_retention_is_that_of_the_result_file() -> None:
    text = gap.PAGE.read_text(encoding="utf-8")
    figure = f"![what is kept of a text, by later writes]({retention.FIGURE})\n\n"
    assert tables.put(text, "retention", figure + retention.table(tables.source("retention"))) == text
    assert (gap.PAGE.parent / retention.FIGURE).exists()


def test_the_page_of_results_is_that_of_the_result_files(tmp_path: Path) -> None:
    results.main(["--report", "--page", str(tmp_path / "results.md")])
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == results.PAGE.read_text(encoding="utf-8")
    made = {figure.name for figure in (tmp_path / "results").iterdir()}
    assert made == {figure.name for figure in (results.PAGE.parent / "results").iterdir()}


def test_a_page_without_the_markers_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"costs\.md has no <!-- cost --> markers"):
        tables.put("no markers", "cost", "| table |")


def test_the_text_around_a_table_stays() -> None:
    text = "before\n<!-- cost -->\nold\n<!-- /cost -->\nafter\n"
    assert tables.put(text, "cost", "new") == "before\n<!-- cost -->\nnew\n<!-- /cost -->\nafter\n"
