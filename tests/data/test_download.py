"""Downloads: whole and with the right digest, or not at all; resumed where they were cut."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from byheart.data import download
from byheart.data.download import fetch, require_space
from byheart.errors import InputError
from byheart.files import digest_of_file
from tests.data.server import Server, serving

CONTENT = bytes(range(256)) * 20
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        found.files["/a.bin"] = CONTENT
        yield found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    target = tmp_path / "new" / "a.bin"
    for _ in range(2):
        assert fetch(f"{server.url}/a.bin", target, sha256=SHA256, progress=lambda *at: seen.append(at)) == SHA256
    assert target.read_bytes() == CONTENT
    assert names(target.parent) == ["a.bin"]
    assert seen == [(len(CONTENT), len(CONTENT))]
    assert server.asked == [("/a.bin", "")]


def test_half_a_download_is_kept_and_resumed(server: Server, tmp_path: Path) -> None:
    server.cut, target = 1000, tmp_path / "a.bin"
    said = r"only 1,000 of 5,120 bytes have arrived\. 1,000 bytes are kept; the same again resumes from there\."
    with pytest.raises(InputError, match=said):
        fetch(f"{server.url}/a.bin", target, sha256=SHA256)
    assert names(tmp_path) == ["a.bin.part", "a.bin.part.tag"]
    server.cut = 0
    assert fetch(f"{server.url}/a.bin", target, sha256=SHA256) == SHA256
    assert target.read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin"]
    assert server.asked == [("/a.bin", ""), ("/a.bin", "bytes=1000-")]


@pytest.mark.parametrize("what", ["changed", "no version", "no ranges"])
def test_half_a_download_begins_again_where_it_cannot_be_resumed(server: Server, tmp_path: Path, what: str) -> None:
    server.cut, target = 1000, tmp_path / "a.bin"
    server.tag = "" if what == "no version" else server.tag
    with pytest.raises(InputError, match="only 1,000"):
        fetch(f"{server.url}/a.bin", target)
    server.cut, server.ranges = 0, what != "no ranges"
    if what == "changed":
        server.files["/a.bin"], server.tag = CONTENT[::-1], '"2"'
    fetch(f"{server.url}/a.bin", target)
    assert target.read_bytes() == server.files["/a.bin"]
    assert names(tmp_path) == ["a.bin"]


def test_a_part_that_is_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT * 2)
    (tmp_path / "a.bin.part.tag").write_text(server.tag)
    assert fetch(f"{server.url}/a.bin", tmp_path / "a.bin") == SHA256


def test_a_source_that_has_changed_is_refused_and_nothing_stays(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = b"other"
    with pytest.raises(InputError, match=r"a\.bin has changed: another file .* \(5 bytes; SHA-256 .*, expected .*\)\."):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", sha256=SHA256)
    assert names(tmp_path) == []


def test_a_file_that_was_put_there_must_be_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert fetch("https://nowhere.invalid/a.bin", tmp_path / "a.bin", sha256=SHA256) == SHA256
    with pytest.raises(InputError, match=r"is not the file that was at https://nowhere.*Remove it to fetch it again"):
        fetch("https://nowhere.invalid/a.bin", tmp_path / "a.bin", sha256="0" * 64)


def test_a_source_that_is_gone_is_named_with_where_to_put_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"/none is gone, .* says 404 Not Found\. Where you have the file, put it at '"
    ):
        fetch(f"{server.url}/none", tmp_path / "a.bin")
    assert names(tmp_path) == []


def test_without_a_network_it_says_where_to_put_the_file(tmp_path: Path) -> None:
    # Nothing listens at a port that was just free.
    with serving() as gone:
        url = gone.url
    with pytest.raises(InputError, match=r"/a could not be fetched: .*refused.* Without a network, put the file at '"):
        fetch(f"{url}/a", tmp_path / "a")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "a.bin"])
def test_what_is_no_web_address_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no address of a file"):
        fetch(url, tmp_path / "a.bin")


def test_without_space_nothing_half_stays(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(download, "sync", full)
    with pytest.raises(InputError, match=r"^'[^']*a\.bin' could not be written: there is no space left\. Nothing half"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert names(tmp_path) == []


def test_other_errors_of_a_disk_stay_what_they_are() -> None:
    with pytest.raises(PermissionError), require_space(Path("a")):
        raise PermissionError(errno.EACCES, "no")


def test_a_folder_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/a\.bin' could not be written"):
        fetch(f"{server.url}/a.bin", tmp_path / "file" / "a.bin")


def test_a_digest_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    assert digest_of_file(tmp_path / "a") == SHA256
