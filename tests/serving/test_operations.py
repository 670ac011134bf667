"""The table of routes, what describes it, and what is said when they fail."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from byheart import serving
from byheart.errors import StateError
from byheart.serving.http.failures import CODES, explain
from byheart.serving.http.openapi import describe
from byheart.serving.http.operations import OPERATIONS
from tests.samples import ROOT

REFERENCE = (ROOT / "docs" / "reference" / "server.md").read_text(encoding="utf-8")
SOURCES = [path.read_text(encoding="utf-8") for path in Path(str(serving.__file__)).parent.rglob("*.py")]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method} {each.path}")
def test_every_route_is_in_the_reference_and_in_the_description(operation: object) -> None:
    method, path = operation.method, operation.path.replace(":path", "")  # type: ignore[attr-defined]
    assert re.search(rf"`{method} {re.escape(path)}[`?]", REFERENCE)
    described = describe()["paths"][path][method.lower()]
    assert described["summary"].endswith(".")


def test_every_code_is_in_the_reference() -> None:
    found = {code for source in SOURCES for code in re.findall(r'(?:Refusal|Failure)\(\s*\d{3},\s*"(\w+)"', source)}
    found |= {code for _, _, code in CODES}
    assert len(found) > 25
    assert [code for code in sorted(found) if f"`{code}`" not in REFERENCE] == []


def test_a_full_disk_is_said_wherever_it_was_noticed() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = StateError("'/srv/x' could not be written")
    wrapped.__cause__ = full
    for error in (full, wrapped):
        assert (explain(error, "r").status, explain(error, "r").code) == (507, "storage_full")
    read_only = explain(OSError(errno.EROFS, "Read-only", "/srv/x"), "r")
    assert (read_only.status, read_only.code) == (503, "store_unavailable")
    assert "/srv" not in read_only.message
