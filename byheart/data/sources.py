"""Where a data set comes from: a file at a URL or a part of a data set on the hub, as rows of its own columns.

A file is JSON, JSON lines, CSV, Parquet or plain text, perhaps compressed with gzip or a member of a zip archive; what
it is its name says. Files are kept in a folder, so that a second build downloads nothing, and what was fetched by other
means is put there. Nothing here knows byheart's fields.
"""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import importlib
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from byheart.data.columns import Fields
from byheart.data.download import Progress, fetch
from byheart.data.hub import HubName, read_hub
from byheart.data.json_rows import decode, rows_of_json, rows_of_lines
from byheart.errors import InputError, UsageError
from byheart.files import digest_of_file

_HEADING = re.compile(r" ?= [^=]+ = ?\n?")


@dataclass(frozen=True)
class Source:
    """One file, or one part of a data set on the hub.

    Args:
        url: of a file; or
        hub: a name, see ``data.hub``.
        sha256: of the file, where it is known.
        member: which files of a zip archive are read, in the order of their names, as a pattern.
        group: ``articles`` makes one row of the lines of each article of WikiText.
    """

    url: str = ""
    hub: str = ""
    sha256: str = ""
    member: str = ""
    group: str = ""

    @property
    def name(self) -> str:
        """What is fetched, in a few words."""
        return self.url or f"the hub's {self.hub}"

    @property
    def is_pinned(self) -> bool:
        """Whether what is fetched can be no other data than these: by a digest, or a commit in its name."""
        return bool(self.sha256 or re.search(r"[0-9a-f]{40}", self.url or self.hub))

    def place(self, folder: Path) -> Path:
        """Where its file is kept, or a copy of the hub's data set may be put."""
        if self.hub:
            return folder / HubName.of(self.hub).name
        name = PurePosixPath(urlsplit(self.url).path).name
        # Files of different data sets may have one name.
        return folder / f"{hashlib.sha256(self.url.encode()).hexdigest()[:6]}-{name}"

    def rows(self, folder: Path, *, offline: bool, progress: Progress) -> Iterator[Fields]:
        """Its rows, fetched into ``folder`` where they are not there.

        Raises InputError where they cannot be, or ``offline`` is asked for and they are not there.
        """
        place = self.place(folder)
        if offline and not place.exists():
            raise InputError(f"{self.name} is not there and would be fetched. Put it at '{place}', or go online.")
        if self.hub:
            rows = _of_hub(self.hub, place)
        else:
            fetch(self.url, place, sha256=self.sha256, progress=progress)
            rows = iter(read_file(place, self.member))
        return articles(rows) if self.group == "articles" else rows

    def digest(self, folder: Path) -> str:
        """The SHA-256 of its file; empty for the hub, which says itself what a revision is."""
        place = self.place(folder)
        return digest_of_file(place) if place.is_file() else ""


def read_file(path: Path, member: str = "") -> Iterable[Fields]:
    """The rows of a file, or of the files of an archive. Raises InputError for what it is not."""
    try:
        if path.suffix == ".zip" or zipfile.is_zipfile(path):
            return _of_archive(path, member)
        if path.suffix == ".parquet":
            return _of_parquet(path)
        return _reader(path.name)(decode(path.read_bytes(), path.name), f"'{path}'", path.name)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' cannot be read: {error}.") from error


def articles(rows: Iterable[Fields]) -> Iterator[Fields]:
    """The articles in the lines of WikiText: each begins with a heading of one equals sign."""
    lines: list[str] = []
    for row in rows:
        # The hub's copy holds a line of one space as an empty one.
        line = str(row["text"]) or " \n"
        if lines and _HEADING.fullmatch(line):
            yield {"text": "".join(lines)}
            lines = []
        # What stands before the first heading belongs to no article.
        lines += [line] if lines or line.strip() else []
    if lines:
        yield {"text": "".join(lines)}


def _of_hub(name: str, place: Path) -> Iterator[Fields]:
    """The rows of a data set on the hub, or of the copy of it that lies in a folder."""
    try:
        yield from read_hub(name, place=str(place) if place.is_dir() else "")
    except InputError as error:
        copy = "" if place.is_dir() else f" A copy of the data set, a folder, is looked for at '{place}'."
        raise InputError(f"{error}{copy}") from error


def _of_archive(path: Path, member: str) -> list[Fields]:
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if fnmatch.fnmatch(name, member))
        if not names:
            there = ", ".join(archive.namelist()[:5]) or "nothing"
            raise InputError(f"'{path}' holds no '{member}'; it begins with {there}.")
        return [
            row for name in names for row in _reader(name)(decode(archive.read(name), name), f"'{path}' {name}", name)
        ]


def _of_parquet(path: Path) -> Iterator[Fields]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(f"'{path}' is a Parquet file. To read it: pip install 'byheart[hub]'") from error
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    # What pyarrow raises for a damaged file is a ValueError.
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read: {error}.") from error


def _reader(name: str) -> Callable[[str, str, str], Iterable[Fields]]:
    """What makes rows of text, by the name of its file."""
    found = [_READERS[suffix] for suffix in PurePosixPath(name).suffixes if suffix in _READERS]
    if not found:
        raise InputError(f"'{name}' is none of {', '.join(_READERS)}, .parquet and .zip.")
    return found[-1]


def _of_table(text: str, where: str, name: str) -> Iterable[Fields]:
    if ".tsv" not in name:
        return _cells(text)
    with suppress(csv.Error):
        rows = _cells(text, delimiter="\t")
        if not any(None in row or None in row.values() for row in rows):
            return rows
    # GLUE's tables hold quotation marks that open nothing: taken for some, they join cells and rows.
    return _cells(text, delimiter="\t", quoting=csv.QUOTE_NONE)


def _cells(text: str, **form: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), **form))


def _of_text(text: str, where: str, name: str) -> list[Fields]:
    return [{"name": PurePosixPath(name).stem, "text": text.replace("\r\n", "\n")}]


_READERS: Mapping[str, Callable[[str, str, str], Iterable[Fields]]] = {
    ".jsonl": lambda text, where, name: rows_of_lines(text.split("\n"), where),
    ".json": lambda text, where, name: rows_of_json(text, where),
    ".csv": _of_table,
    ".tsv": _of_table,
    ".txt": _of_text,
}
