"""What is kept in the cache folder is found again, and no cache is no error."""

from __future__ import annotations

from pathlib import Path

import pytest

from byheart.cache import cached, keep, recall
from byheart.files import cache_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "cache"))
    return cache_folder()


def test_what_is_kept_is_found_by_kind_and_key(folder: Path) -> None:
    keep("names", "a", ["x"])
    assert (recall("names", "a"), recall("names", "b"), recall("others", "a")) == (["x"], None, None)
    keep("names", "a", "y")
    assert recall("names", "a") == "y"


def test_it_is_computed_once_and_without_a_key_each_time(folder: Path) -> None:
    calls: list[int] = []
    for key in ("a", "a", "", ""):
        assert cached("counts", key, lambda: calls.append(1) or [2]) == [2]
    assert len(calls) == 3


def test_a_key_names_no_path(folder: Path) -> None:
    keep("names", "../../elsewhere", "x")
    assert recall("names", "../../elsewhere") == "x"
    assert [path.parent for path in folder.rglob("*.json")] == [folder / "names"]


def test_a_cache_that_cannot_be_used_is_no_error(folder: Path) -> None:
    keep("names", "a", "x")
    for path in folder.rglob("*.json"):
        path.write_text("{", encoding="utf-8")
    assert recall("names", "a") is None
    (folder / "counts").write_text("", encoding="utf-8")
    assert cached("counts", "a", lambda: 3) == 3
