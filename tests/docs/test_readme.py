"""What the README shows is run."""

import re
from pathlib import Path

import pytest
import torch

from byheart.cli import main
from tests.samples import ROOT

README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = re.findall(r"^byheart (\S+)", README.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("code", BLOCKS, ids=[block.strip().splitlines()[-1][:40] for block in BLOCKS])
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    assert names
    assert torch.get_num_threads() == before


def test_the_session_of_the_readme_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[0], str(README), "exec"), {})
    answers = capsys.readouterr().out
    assert "Muck" in answers
    assert "engine room" in answers


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_commands_exist(command: str) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert not left.value.code


@pytest.mark.parametrize("marker", ["cost", "questions", "tasks", "training"])
def test_tables_are_those_of_the_result_files(marker: str) -> None:
    from benchmarks.tables import PAGES, TABLES, put, source

    text = PAGES[marker].read_text(encoding="utf-8")
    assert put(text, marker, TABLES[marker](source(marker))) == text


@pytest.mark.parametrize("marker", ["gap", "gap-lengths", "retention"])
def test_tables_of_the_measures_are_those_of_the_result_files(marker: str) -> None:
    from benchmarks.gap import gap_table
    from benchmarks.retention import table
    from benchmarks.tables import ROOT, put

    made = {"retention": table}.get(marker, gap_table)(ROOT / "benchmarks" / "results" / f"{marker}.json")
    page = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
    figure = "![what is kept of a text, by later writes](retention.svg)\n\n" if marker == "retention" else ""
    assert put(page, marker, figure + made) == page


def test_the_page_of_results_is_that_of_the_result_files(tmp_path: Path) -> None:
    from benchmarks import results

    results.main(["--report", "--page", str(tmp_path / "results.md")])
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == results.PAGE.read_text(encoding="utf-8")
