"""Building a data set from its public source: fetched, chosen, mapped, checked, and written whole or not at all.

    FOLDER/sources/         files as they were fetched, or put there by hand
    FOLDER/eval/NAME.jsonl, FOLDER/train/NAME.jsonl
    FOLDER/data.lock.json   of every file built: its SHA-256, its records, and the digests of what it was made from

A file whose digest is known must have it. One whose digest could not be known before is written down when it is first
built, and must be the same from then on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from byheart.data.columns import Fields, content_key, map_columns, pick
from byheart.data.download import Progress, require_space
from byheart.data.sets import Choice, DataSet, Part, Piece
from byheart.errors import InputError
from byheart.files import digest_of_file, read_json, replacing

LOCK = "data.lock.json"
SOURCES = "sources"
LISTS = Path(__file__).with_name("listed")
EMPTY: Fields = {
    "id": "",
    "dataset": "",
    "split": "",
    "task": "lm",
    "context": "",
    "question": "",
    "answers": [],
    "choices": None,
    "label": None,
    "meta": {},
}


@dataclass(frozen=True)
class Built:
    """A file as it was built; ``is_published`` where the published numbers were made from the very same."""

    path: str
    records: int
    bytes: int
    sha256: str
    is_published: bool
    is_new: bool


def build(
    data_set: DataSet,
    folder: Path,
    *,
    offline: bool = False,
    accept: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[Built]:
    """Build the parts of a data set that are not there.

    Args:
        offline: fetch nothing: say what is missing, and where to put it.
        accept: take a file whose digest is another than the known one, and write that down.
        progress: called with the bytes of a download, or the records of the hub.

    Raises InputError where a source cannot be read or has changed, or a record has no such column; the files that
    were there are as before.
    """
    return [_build(data_set, part, folder, offline, accept, progress) for part in data_set.parts]


def list_sources(data_set: DataSet, folder: Path) -> list[tuple[str, Path, bool]]:
    """What a data set is made from: what it is, its place in ``folder``, and whether it is there."""
    sources = {piece.source: None for part in data_set.parts for piece in part.pieces}
    places = [(source.name, source.place(folder / SOURCES)) for source in sources]
    return [(name, place, place.exists()) for name, place in places]


def _build(data_set: DataSet, part: Part, folder: Path, offline: bool, accept: bool, progress: Progress) -> Built:
    file, lock = part.file(folder, data_set.name), _Lock(folder)
    key = file.relative_to(folder).as_posix()
    is_new = not file.is_file()
    if not is_new:
        _require_same(file, file, lock.of(key), part, accept)
        return _describe(file, part, is_new=False)
    with require_space(file), replacing(file) as scratch:
        with scratch.open("w", encoding="utf-8", newline="\n") as stream:
            for record in records_of(part, folder / SOURCES, offline=offline, progress=progress):
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        _require_same(scratch, file, lock.of(key), part, accept)
    built = _describe(file, part, is_new=True)
    used = {piece.source.name: piece.source.digest(folder / SOURCES) for piece in part.pieces}
    lock.put(key, {"sha256": built.sha256, "records": built.records, "from": used})
    return built


def records_of(part: Part, sources: Path, *, offline: bool = False, progress: Progress) -> Iterator[Fields]:
    """The records of a part, in its order. Raises InputError."""
    found = [record for piece in part.pieces for record in _records(piece, sources, offline=offline, progress=progress)]
    if not found:
        raise InputError(f"{part.pieces[0].source.name} gives no record: {part.pieces[0].choice.rule}.")
    return iter(_listed(found, part.choice.listed) if part.choice.listed else _ordered(found, part.choice))


def _records(piece: Piece, sources: Path, *, offline: bool, progress: Progress) -> list[Fields]:
    rows = _counted(piece.source.rows(sources, offline=offline, progress=progress), progress, piece.source.hub)
    where = _where(enumerate(rows), piece.choice.where, piece.source.name)
    numbered = list(islice(where, piece.choice.first or None))
    chosen = _ordered(_as_named(numbered, piece), piece.choice)
    source, fixed = piece.source.name, piece.fixed
    made = (
        {**fixed, **map_columns(row, piece.columns, number=number, source=source, fixed=fixed)}
        for number, row in chosen
    )
    return [_complete(record) for record in made]


def _counted(rows: Iterable[Fields], progress: Progress, hub: str) -> Iterator[Fields]:
    for number, row in enumerate(rows, start=1):
        if hub:
            progress(number, 0)
        yield row


def _where(rows: Iterable[tuple[int, Fields]], where: Mapping[str, Any], source: str) -> Iterator[tuple[int, Fields]]:
    """Those that have the values asked for, with their numbers. Raises InputError."""
    allowed = {column: value if isinstance(value, list) else [value] for column, value in where.items()}
    for number, row in rows:
        try:
            if all(pick(row, column) in values for column, values in allowed.items()):
                yield number, row
        except LookupError as error:
            there = ", ".join(sorted(map(str, row))) or "none"
            raise InputError(
                f"{source}, record {number + 1}: {error}, by which it is chosen; its columns are {there}."
            ) from error


def _as_named(numbered: list[tuple[int, Fields]], piece: Piece) -> list[tuple[int, Fields]]:
    """Rows in the order in which a choice names them. Raises InputError where one is not there."""
    if not piece.choice.order:
        return numbered
    names = piece.choice.where[piece.choice.order]
    known = {pick(row, piece.choice.order): (number, row) for number, row in numbered}
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(
            f"{piece.source.name} has no {', '.join(missing[:3])}: {len(missing):,} of {len(names):,} are not there."
        )
    return [known[name] for name in names]


def _ordered(rows: list[Any], choice: Choice) -> list[Any]:
    """Shuffled and cut as a choice says."""
    rows = list(rows)
    if choice.shuffle is not None:
        random.Random(choice.shuffle).shuffle(rows)
    return rows[choice.take[0] : choice.take[1]] if choice.take else rows


def _listed(records: list[Fields], name: str) -> list[Fields]:
    """The records whose content keys a file lists, in its order. Raises InputError where some are not there."""
    keys = (LISTS / f"{name}.txt").read_text(encoding="utf-8").split()
    known: dict[str, Fields] = {}
    for record in records:
        known.setdefault(content_key(record), record)
    missing = sum(key not in known for key in keys)
    if missing:
        raise InputError(
            f"{missing:,} of the {len(keys):,} records that {name} lists are not in the source: it has changed."
        )
    return [{**known[key], "id": f"{name}-{key}"} for key in keys]


def _complete(record: Fields) -> Fields:
    """All fields of a record, in their order."""
    whole = {**EMPTY, **record}
    return {name: whole[name] for name in EMPTY}


# ---- digests ----


class _Lock:
    """What was built in a folder, as it is written down there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        try:
            self.entries: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        except (OSError, ValueError) as error:
            raise InputError(f"'{self.path}' cannot be read: {error}. Remove it to build without it.") from error

    def of(self, key: str) -> str:
        """The digest of a file that was built before; empty for another."""
        entry = self.entries.get(key)
        return str(entry.get("sha256", "")) if isinstance(entry, dict) else ""

    def put(self, key: str, entry: Mapping[str, Any]) -> None:
        with require_space(self.path), replacing(self.path) as scratch:
            scratch.write_text(json.dumps({**self.entries, key: entry}, indent=1) + "\n", encoding="utf-8")


def _require_same(found: Path, file: Path, locked: str, part: Part, accept: bool) -> None:
    """Refuse a file that is another than it was, or than it must be. Raises InputError."""
    wanted = locked or part.sha256
    if accept or not wanted or digest_of_file(found) == wanted:
        return
    before = "the one that was built here before" if locked else "the one that the published numbers were made from"
    records, expected = _count(found), f" of {part.records:,}" if part.records else ""
    if found == file:
        raise InputError(f"'{file}' is not {before}: it was changed. Remove it to build it again, or give --accept.")
    raise InputError(
        f"'{file}' would be another than {before} ({records:,} records{expected}; SHA-256 "
        f"{digest_of_file(found)[:16]}..., expected {wanted[:16]}...): the source has changed. It was not written; "
        "--accept takes it as it is."
    )


def _describe(file: Path, part: Part, *, is_new: bool) -> Built:
    sha256 = digest_of_file(file)
    is_published = bool(part.sha256) and sha256 == part.sha256
    return Built(str(file), _count(file), file.stat().st_size, sha256, is_published, is_new)


def _count(file: Path) -> int:
    with file.open("rb") as stream:
        return sum(1 for _ in stream)
