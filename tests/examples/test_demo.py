"""The demonstration runs from end to end, here with a tiny model and without the seconds that a process takes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from byheart.session import load
from tests.conftest import Run
from tests.samples import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
    return module


def test_the_demonstration_compares_memories_and_asks_from_other_processes(
    demo: ModuleType,
    run: Run,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # What is kept for the model is made before processes are only pretended.
    session = load(str(tiny_folder), method="full", dtype="float32")
    assert session.encoder.template.receipt
    article = tmp_path / "cat.txt"
    article.write_text("The cat is called Muck.", encoding="utf-8")
    processes: list[list[str]] = []

    def started(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        processes.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="said")

    monkeypatch.setattr(subprocess, "run", started)
    monkeypatch.setenv("COLUMNS", "90")
    demo.main(["--model", str(tiny_folder), "--article", str(article)])
    said = capsys.readouterr().out
    for name in demo.METHODS:
        assert f"{name}: written in" in said
    assert said.count("$ byheart") == 3
    assert "compact keeps" in said
    assert max(len(line) for line in said.splitlines() if "$ byheart" not in line) <= 90
    assert [command[3] for command in processes] == ["write", "ask", "ask"]


def test_the_article_says_where_it_comes_from(demo: ModuleType) -> None:
    text = demo.ARTICLE.read_text(encoding="utf-8")
    licence = demo.ARTICLE.with_suffix(".LICENSE.md").read_text(encoding="utf-8")
    assert text.startswith("Warsaw\n\nWarsaw (Polish: Warszawa")
    assert "asks the question" not in text
    assert "CC BY-SA 4.0" in licence
    assert "https://en.wikipedia.org/wiki/Warsaw" in licence
