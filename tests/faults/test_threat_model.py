"""Every threat of the page has a test, and every test that it names exists."""

from __future__ import annotations

import ast
import re

import pytest

from tests.faults.attacks import ATTACKS
from tests.samples import ROOT

PAGE = (ROOT / "docs" / "explanation" / "threat-model.md").read_text(encoding="utf-8")
THREATS = PAGE[PAGE.index("## Threats") : PAGE.index("## What is not protected")]
ROWS = re.findall(r"^\| (?!threat)(\w.*?) \| .* \| (.*?) \|$", THREATS, re.MULTILINE)
NAMED = re.findall(r"`([^`]+)`", " ".join(shown for _, shown in ROWS)) + re.findall(r"`(tests/\S+::\S+)`", THREATS)


def _exists(name: str) -> bool:
    """Whether there is an attack of this name, or a test: ``tests/folder/test_file.py::test_name``."""
    file, _, test = name.partition("::")
    if not test:
        return name in {attack.name for attack in ATTACKS}
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == test for node in ast.walk(tree))


@pytest.mark.parametrize(("threat", "shown"), ROWS, ids=[threat[:40] for threat, _ in ROWS])
def test_each_threat_has_a_test(threat: str, shown: str) -> None:
    assert re.findall(r"`[^`]+`", shown), threat


@pytest.mark.parametrize("name", sorted(set(NAMED)))
def test_what_the_page_names_exists(name: str) -> None:
    assert _exists(name)


def test_each_attack_belongs_to_a_threat() -> None:
    assert {attack.name for attack in ATTACKS} <= set(NAMED)
