"""What ``import byheart`` offers is what it says it offers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import byheart

PACKAGE = Path(byheart.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(PACKAGE)], "byheart.") if "__" not in module.name)


def test_all_is_the_public_namespace() -> None:
    """Names are imported when they are first used; the list that type checkers read must be the same one."""
    offered = {name: getattr(byheart, name) for name in byheart.__all__}
    assert len(offered) == len(byheart.__all__)
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and str(node.module).startswith("byheart")
    ]
    typed = {alias.asname: (node.module, alias.name) for node in imports for alias in node.names}
    assert typed.keys() == offered.keys()
    for name, (module, original) in typed.items():
        assert name == original
        assert getattr(importlib.import_module(str(module)), name) is offered[name]
    for name, value in vars(byheart).items():
        if not name.startswith("_") and str(getattr(value, "__module__", "")).startswith("byheart"):
            assert name in offered


def test_names_are_completed_and_others_are_ordinary_errors() -> None:
    assert dir(byheart) == sorted(byheart.__all__)
    with pytest.raises(AttributeError, match="module 'byheart' has no attribute 'nonesuch'"):
        _ = byheart.nonesuch


def test_the_table_of_contents_is_short() -> None:
    assert len((PACKAGE / "__init__.py").read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize("name", MODULES)
def test_a_modules_all_names_what_it_has(name: str) -> None:
    module = importlib.import_module(name)
    for exported in getattr(module, "__all__", ()):
        getattr(module, exported)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_does_and_asserts_nothing(name: str) -> None:
    """An ``assert`` is no answer to a user, and Python drops it when asked to."""
    module = importlib.import_module(name)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("byheart.cli")])
def test_the_library_never_prints(name: str) -> None:
    tree = ast.parse(Path(str(importlib.import_module(name).__file__)).read_text(encoding="utf-8"))
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls


@pytest.mark.slow
def test_importing_changes_nothing_outside() -> None:
    """No patching, no logging set up, no threads chosen, no seed drawn."""
    program = (
        "import logging, os, torch, transformers\n"
        "from transformers.modeling_utils import AttentionInterface\n"
        "def now(): return (logging.root.handlers[:], logging.root.level, dict(os.environ), torch.get_num_threads(),\n"
        "    torch.get_default_dtype(), torch.random.get_rng_state().tolist(), sorted(AttentionInterface().keys()))\n"
        "before = now()\n"
        "import byheart, byheart.session, byheart.testing, byheart.methods, byheart.model\n"
        "for name in byheart.__all__: getattr(byheart, name)\n"
        "assert now() == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PACKAGE.parent)
