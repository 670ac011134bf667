"""Every score is one that a task gives: what only tests would call proves nothing about a printed number."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.samples import ROOT

METRICS = ROOT / "byheart" / "evaluation" / "metrics"


def functions(file: Path) -> list[str]:
    """The public functions of a module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def used(file: Path) -> set[str]:
    """The names that a module reads, as such or of another module; a definition does not count as a use."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("file", sorted(METRICS.glob("*.py")), ids=lambda file: file.stem)
def test_every_score_has_a_caller_in_the_package(file: Path) -> None:
    callers = set().union(*(used(path) for path in (ROOT / "byheart").rglob("*.py")))
    assert [name for name in functions(file) if name not in callers] == []


def test_a_score_without_a_caller_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "scores.py").write_text("def perplexity(loss): ...\n\n\ndef f1(a): ...\n\n\nf1(1)\n")
    assert functions(tmp_path / "scores.py") == ["perplexity", "f1"]
    assert "f1" in used(tmp_path / "scores.py")
    assert "perplexity" not in used(tmp_path / "scores.py")
