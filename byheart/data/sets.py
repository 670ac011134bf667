"""The data sets that results and recipes are made from: what each part is, where it comes from, and by which rule.

They stand in ``sets.toml``; the notation of their columns is that of ``columns``. A part takes what its set says,
unless it says something else itself. Nothing here reads or fetches data.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from byheart.data.columns import Columns, Fields
from byheart.data.sources import Source
from byheart.errors import UnknownNameError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("sets.toml")


@dataclass(frozen=True)
class Choice:
    """Which rows are taken, in which order.

    Args:
        where: column -> the value it must have, or a list of those it may have.
        order: one of these columns: a row for each value of its list, in that order.
        shuffle: a seed: the rows are put in the order of ``random.Random(seed).shuffle``.
        first: so many rows alone, before they are shuffled; 0 is all.
        take: the places of those that stay, from and up to, in that order.
        listed: a file of content keys, see ``columns.content_key``: these records, in its order.
    """

    where: Mapping[str, Any] = field(default_factory=dict)
    order: str = ""
    shuffle: int | None = None
    first: int = 0
    take: Sequence[int] = ()
    listed: str = ""

    @property
    def rule(self) -> str:
        """The same in words."""
        order = "" if self.shuffle is None else f"in the order of random.Random({self.shuffle}).shuffle"
        said = [
            *(f"{column} {_said(value)}" for column, value in self.where.items()),
            f"the first {self.first:,}" if self.first else "",
            order,
            f"places {self.take[0]:,} to {self.take[1] - 1:,}" if self.take else "",
            f"those that {self.listed} lists, in its order" if self.listed else "",
        ]
        return ", ".join(filter(None, said)) or "all"


@dataclass(frozen=True)
class Piece:
    """Rows of one source, chosen, and what their columns become."""

    source: Source
    choice: Choice
    columns: Columns
    fixed: Fields


@dataclass(frozen=True)
class Part:
    """A file of records, ``eval/NAME.jsonl`` or ``train/NAME.jsonl``, made of one piece or several.

    Args:
        choice: of the records of all pieces together.
        records: how many there are; 0 where it is not known.
        sha256: of the file that the published numbers were made from, where a build should give the very same.
    """

    name: str
    pieces: Sequence[Piece]
    choice: Choice
    records: int = 0
    sha256: str = ""

    def file(self, folder: Path, data_set: str) -> Path:
        """Where it is built."""
        return folder / self.name / f"{data_set}.jsonl"


@dataclass(frozen=True)
class DataSet:
    """A public data set; ``note`` says where a build differs from what the published numbers were made from."""

    name: str
    title: str
    licence: str
    parts: Sequence[Part]
    note: str = ""


@cache
def data_sets() -> Mapping[str, DataSet]:
    """All of them by name."""
    return read_sets(FILE)


def find_set(name: str) -> DataSet:
    """A data set by its name. Raises UnknownNameError."""
    if name not in data_sets():
        raise UnknownNameError("data set", name, data_sets())
    return data_sets()[name]


def read_sets(file: Path) -> Mapping[str, DataSet]:
    """The data sets of a file in the notation of ``sets.toml``."""
    stored = tomllib.loads(file.read_text(encoding="utf-8"))
    return {name: _data_set(name, entry) for name, entry in stored.items()}


def _data_set(name: str, entry: dict[str, Any]) -> DataSet:
    parts = [_part(part, {**entry, **own}, own) for part, own in entry["parts"].items()]
    return DataSet(name, entry["title"], entry["licence"], parts, entry.get("note", ""))


def _part(name: str, entry: Mapping[str, Any], own: Mapping[str, Any]) -> Part:
    pieces = [_piece(piece, entry) for piece in entry["from"]]
    return Part(name, pieces, Choice(**own.get("choose", {})), own.get("records", 0), own.get("sha256", ""))


def _piece(piece: Mapping[str, Any], entry: Mapping[str, Any]) -> Piece:
    given = dict(piece)
    choice = Choice(**given.pop("choose", {}))
    columns = {**entry.get("columns", {}), **given.pop("columns", {})}
    fixed = {**entry.get("fixed", {}), **given.pop("fixed", {})}
    return Piece(Source(**given), choice, columns, fixed)


def _said(value: Any) -> str:
    return f"one of {len(value)}" if isinstance(value, list) else str(value)
