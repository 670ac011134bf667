"""Tests stand on what others may use too: no private name, and no module's path in a string."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = sorted(Path(__file__).parent.rglob("*.py"))
# Those of other libraries, which have no public ones.
THEIRS = {"_exit", "_getframe", "_request_id", "_loglikelihood_tokens", "_is_avx512_bf16_supported"}
THEIRS |= {"_is_amx_tile_supported", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in THEIRS


def offences(source: str) -> Iterator[str]:
    """Lines that patch by a module's path, or use a private name of another object or file."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if is_private(name):
                yield f"{node.lineno}: {name}"
            case ast.ImportFrom(names=names):
                yield from (f"{node.lineno}: {each.name}" for each in names if is_private(each.name))
            case ast.Call(func=ast.Attribute(attr="setattr" | "patch"), args=[ast.Constant(value=str(path)), *_]):
                yield f"{node.lineno}: {path}"


@pytest.mark.parametrize(
    "source",
    [
        "from byheart.model.attention import _mask",
        "session._cache",
        "monkeypatch.setattr('byheart.data.sources.fetch', f)",
    ],
)
def test_an_offence_is_found(source: str) -> None:
    assert len(list(offences(source))) == 1


def test_no_test_uses_private_names_or_paths_of_modules() -> None:
    found = [f"{path.name}:{line}" for path in TESTS for line in offences(path.read_text(encoding="utf-8"))]
    assert not found
