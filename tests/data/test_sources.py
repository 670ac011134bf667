"""Sources: the kinds of files, the articles of WikiText, and where a file of each is looked for."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from byheart.data.sources import Source, articles, read_file
from byheart.errors import InputError

ROWS = [{"a": "1", "b": "x"}, {"a": "2", "b": "y\nz"}]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES.encode()),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", b"\xef\xbb\xbf" + json.dumps({"data": ROWS}).encode()),
        ("a.csv", b'a,b\r\n1,x\r\n2,"y\nz"\r\n'),
        ("a.tsv", b'a\tb\n1\tx\n2\t"y\nz"\n'),
    ],
)
def test_a_file_is_read_by_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(read_file(tmp_path / name)) == ROWS


def test_parquet_is_read_where_its_package_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert list(read_file(tmp_path / "a.parquet")) == ROWS
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(InputError, match=r"b\.parquet' cannot be read"):
        list(read_file(tmp_path / "b.parquet"))


def test_members_of_an_archive_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("x/b.txt", "x/a.txt", "x/c.md"):
            archive.writestr(name, f"{name}\r\n")
    found = list(read_file(tmp_path / "a.zip", "*/*.txt"))
    assert found == [{"name": "a", "text": "x/a.txt\n"}, {"name": "b", "text": "x/b.txt\n"}]
    with pytest.raises(InputError, match=r"a\.zip' holds no '\*\.csv'; it begins with x/b\.txt, x/a\.txt, x/c\.md"):
        read_file(tmp_path / "a.zip", "*.csv")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.zip", b"no archive", "cannot be read"),
        ("a.jsonl", b"{}\n{", "line 2 is not JSON"),
        ("a.jsonl.gz", b"plain", "cannot be read"),
        ("a.csv", b"\xff\xfe", "cannot be read"),
        ("a.bin", b"", "is none of .jsonl, .json, .csv, .tsv, .txt, .parquet and .zip"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=match):
        list(read_file(tmp_path / name))


def test_lines_become_articles_at_each_heading_of_one_equals_sign() -> None:
    lines = ["", " = A = \n", "", " Text . \n", " = = Part = = \n", "", " = B = \n", " x = y \n"]
    found = list(articles({"text": line} for line in lines))
    assert found == [{"text": " = A = \n \n Text . \n = = Part = = \n \n"}, {"text": " = B = \n x = y \n"}]
    assert list(articles([])) == []


def test_files_of_one_name_have_places_of_their_own(tmp_path: Path) -> None:
    first, other = (Source(url=f"https://a/{part}/0000.parquet").place(tmp_path) for part in ("train", "test"))
    assert first != other
    assert first.name.endswith("-0000.parquet")
    assert Source(hub="aps/super_glue/cb:train@abc").place(tmp_path) == tmp_path / "aps" / "super_glue"


@pytest.mark.parametrize(
    ("source", "is_pinned"),
    [
        (Source(url="https://a/b.json"), False),
        (Source(url="https://a/b.json", sha256="0" * 64), True),
        (Source(url=f"https://a/{'0' * 40}/b.json"), True),
        (Source(hub=f"a/b@{'0' * 40}"), True),
        (Source(hub="a/b@refs/convert/parquet"), False),
    ],
)
def test_a_source_is_pinned_by_a_digest_or_a_commit(source: Source, is_pinned: bool) -> None:
    assert source.is_pinned == is_pinned


def test_a_hub_that_cannot_be_read_says_where_a_copy_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*names: str, **options: object) -> None:
        raise ConnectionError("Couldn't reach 'a/b' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    rows = Source(hub="a/b:train").rows(tmp_path, offline=False, progress=lambda done, total: None)
    with pytest.raises(InputError, match=r"Couldn't reach 'a/b'.* a folder, is looked for at '.*a/b'"):
        list(rows)
