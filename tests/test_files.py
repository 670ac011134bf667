"""Files that somebody else may have written, files that must not be lost, and what need not be found again."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from byheart.files import (
    cache_folder,
    cached,
    keep,
    open_regular,
    parse_json,
    read_json,
    recall,
    replacing,
    require_regular,
    sweep,
)

# ---- reading ----


def test_the_cache_may_be_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("BYHEART_CACHE")
    assert cache_folder().name == "byheart"


def test_a_regular_file_is_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        with open_regular(tmp_path / name, inside=tmp_path) as file:
            assert file.read() == b"text"


@pytest.mark.parametrize("target", ["folder", "/dev/zero", "pipe"])
def test_what_is_no_regular_file_is_refused_before_it_is_opened(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(target)
    for refuse in (require_regular, open_regular, read_json):
        with pytest.raises(OSError, match="link' is no regular file"):
            refuse(tmp_path / "link")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_a_file_outside_its_folder_is_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out.json"
    inside.mkdir()
    outside.write_text("1")
    (inside / "link").symlink_to(outside)
    for path in (inside / ".." / "out.json", inside / "link", outside):
        for refuse in (require_regular, open_regular, read_json):
            with pytest.raises(OSError, match="lies outside the folder"):
                refuse(path, inside=inside)


def test_json_is_read_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2.5, "x", null]}')
    assert read_json(path) == {"a": [1, 2.5, "x", None]}
    with pytest.raises(ValueError, match="it has 26 bytes, more than 25"):
        read_json(path, longest=25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "nested too deep"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ('{"a": NaN}', "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "1e999 is no number"),
        ("9" * 5000, "Exceeds the limit"),
    ],
)
def test_json_that_is_broken_or_absurd_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_json_of_too_many_values_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ValueError, match="it has more than 11 values"):
        parse_json("[" + "{}," * 6, most=11)
    assert parse_json("[{}, 1, 2]", most=4) == [{}, 1, 2]
    for text in ("{[,", '"{', '\\"{[,', "\\", 'a\\\\"'):
        assert parse_json(json.dumps([text * 9, "b"]), most=2) == [text * 9, "b"]
        with pytest.raises(ValueError, match="more than 2 values"):
            parse_json(json.dumps([text * 9, "b", 1]), most=2)


def test_a_name_may_have_to_have_one_value() -> None:
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="two values of one name"):
        parse_json('[{"a": 1, "a": 1}]', unique=True)


# ---- writing ----


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with replacing(path) as scratch:
            scratch.write_text(text)
            assert scratch.parent == path.parent
        assert path.read_text() == text
        assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_earlier_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")

    def fail() -> None:
        with replacing(path) as scratch:
            scratch.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_files_permissions_and_a_link_to_it_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    path.write_text("one")
    path.chmod(0o644)
    link.symlink_to(path)
    with replacing(link) as scratch:
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o600
        scratch.write_text("two")
    assert link.is_symlink()
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("two", 0o644)


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    left = [".a.x0_yz9ab.tmp", ".a-x0_yz9ab.tmp"]
    others = [".ab.x0yz9abc.tmp", ".a.b.x0yz9abc.tmp", ".a.tmp", "a.x0yz9abc.tmp", ".a.x0yz9abc.txt", "a.safetensors"]
    for name in (*left, *others):
        (tmp_path / name).write_text("four")
    assert sweep(path) == 8
    assert sorted(os.listdir(tmp_path)) == sorted(others)
    assert sweep(path) == 0


def test_what_is_being_written_is_not_swept(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as scratch:
        scratch.write_text("one")
        assert sweep(path) == 0
    assert path.read_text() == "one"


def test_writers_and_sweepers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    def write(who: int) -> None:
        for _ in range(50):
            sweep(tmp_path / "a.txt")
            with replacing(tmp_path / "a.txt") as scratch:
                scratch.write_text(f"{who}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_swept(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / ".a.x0yz9abc.tmp")
    assert sweep(tmp_path / "a.txt") == 0
    assert os.listdir(tmp_path) == [".a.x0yz9abc.tmp"]


# ---- keeping ----


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
