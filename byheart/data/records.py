"""Reading data sets: JSON lines, tables, plain text, a folder of these, or a data set of the hub, as records.

One JSON object per line, or a list of them in a file; of SQuAD's own files, one per question. What is read of it:
``task`` (lm, qa, dialog; others with a question count as qa), ``context``, ``question``, ``answers`` and
``meta.turns``, ``meta.persona``. Records in the columns of others are recognised by ``layouts``. A plain text file is
one lm record. Nothing here knows tokens.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from byheart.data import metaicl
from byheart.data.hub import is_saved, read_hub, read_saved
from byheart.data.json_rows import lines_of, listed, parse, read_text, rows_of_json, rows_of_lines
from byheart.data.layouts import join_outputs, outputs_of, questions_of, recognise
from byheart.data.sources import read_file
from byheart.errors import InputError

Fields: TypeAlias = Mapping[str, Any]
"""One JSON object."""
_NEEDS = {"lm": "context", "qa": "question and answers", "dialog": "meta.turns of two turns or more"}
_TABLES = (".csv", ".tsv", ".parquet")
_KINDS = (".jsonl", ".json", ".txt", ".md", *_TABLES)


@dataclass(frozen=True)
class Record:
    """One text, with a question and its answer where ``task`` is qa, or with turns where it is dialog."""

    task: str
    context: str
    question: str = ""
    answer: str = ""
    turns: tuple[str, ...] = ()
    persona: str = ""

    @property
    def text(self) -> str:
        """All that there is to read in it."""
        return self.context or "\n".join([self.persona, *self.turns]).strip()


@dataclass(frozen=True)
class DataSet:
    """Records of one source; ``digest`` names its exact content."""

    source: str
    records: list[Record]
    digest: str

    @classmethod
    def of(cls, rows: Sequence[Fields], *, source: str = "the data") -> DataSet:
        """The records in JSON objects. Raises InputError where there is none, saying what each lacks."""
        records = [record for record in map(_record, rows) if record is not None]
        if not records:
            tasks = sorted({str(row.get("task", "lm")) for row in rows}) or ["none"]
            wanted = "; ".join(f"{task} needs {field}" for task, field in _NEEDS.items())
            found = sorted({str(name) for row in rows for name, value in row.items() if value}) or ["none"]
            raise InputError(
                f"'{source}' holds no record to train on: {len(rows)} read, of task {', '.join(tasks)}. {wanted}. "
                f"Missing: {', '.join(_missing(rows))}. Fields that are there: {', '.join(found)}."
            )
        return cls(source, records, hashlib.sha256(repr(records).encode()).hexdigest()[:16])


def read(source: str) -> DataSet:
    """A file, a folder of files, or a hub data set, see ``hub``. Raises InputError or UsageError."""
    return DataSet.of(rows(source), source=source)


def rows(source: str) -> list[Fields]:
    """The same, as JSON objects of any fields. Raises InputError or UsageError."""
    return list(_rows(source))


def stream_rows(source: str) -> Iterator[Fields]:
    """The same, one after another: nothing of the hub is downloaded ahead, and no file of JSON lines is held whole."""
    return _rows(source, streamed=True)


def _rows(source: str, *, streamed: bool = False) -> Iterator[Fields]:
    path = Path(os.path.expanduser(source))
    if is_saved(path):
        yield from recognise(read_saved(path), f"'{path}'", path.resolve().parent.name)
        return
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _kind(file) in _KINDS and not questions_of(file))
        files += metaicl.files_within(path)
    elif path.is_file():
        files = [path]
    elif _kind(path) in _KINDS or source.startswith((".", "/", "~")):
        raise InputError(f"There is no data file or folder '{source}'.")
    else:
        yield from recognise(read_hub(source, streamed=streamed), f"'{source}'")
        return
    for file in files:
        for found in recognise(_rows_of(file), f"'{file}'", _called(file)):
            yield {**metaicl.part_of(file), **found}


def required(record: Fields, name: str, number: int) -> Any:
    """A field; ``meta.turns`` is one inside another. Raises InputError with the record's number."""
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None or value == "" or value == []:
        raise InputError(f"Record {number} has no '{name}'; its fields are {', '.join(sorted(record)) or 'none'}.")
    return value


def _rows_of(file: Path) -> Iterable[Fields]:
    if _kind(file) == ".jsonl":
        return rows_of_lines(lines_of(file), f"'{file}'")
    if _kind(file) in _TABLES:
        return read_file(file)
    text = read_text(file)
    if file.suffix == ".json":
        found = list(rows_of_json(text, f"'{file}'"))
        outputs = outputs_of(file)
        return found if outputs is None else join_outputs(file, found, parse(read_text(outputs), f"'{outputs}'"))
    return [{"task": "lm", "context": text}]


def _called(file: Path) -> str:
    """What the records of a file are called that do not say it: published parts are often FOLDER/train.jsonl."""
    return f"{file.resolve().parent.name}/{file.name.partition('.')[0]}"


def _kind(file: Path) -> str:
    """The end of a file's name that says what it holds, of a compressed one that before it."""
    return Path(file.stem).suffix if file.suffix == ".gz" else file.suffix


def _record(row: Mapping[str, Any]) -> Record | None:
    """What can be trained on in a row, or None."""
    meta, context, question, answer = _meta(row), _context(row), str(row.get("question") or ""), _answer(row)
    turns = tuple(str(turn) for turn in listed(meta.get("turns")))
    if len(turns) > 1:
        return Record("dialog", context, turns=turns, persona="\n".join(map(str, listed(meta.get("persona")))))
    if question and answer and context.strip():
        return Record("qa", context, question, answer)
    if context.strip() and not question:
        return Record("lm", context)
    return None


def _missing(rows: Sequence[Fields]) -> list[str]:
    """What rows without a record lack, by the task that each names or looks like."""
    lacking: set[str] = set()
    for row in rows:
        dialog = row.get("task") == "dialog"
        asked = not dialog and (row.get("task", "lm") != "lm" or bool(row.get("question")))
        lacking |= {"meta.turns"} if dialog else set()
        lacking |= {"context"} if not dialog and not _context(row).strip() else set()
        lacking |= {"question"} if asked and not row.get("question") else set()
        lacking |= {"answers"} if asked and not _answer(row) else set()
    return sorted(lacking) or ["records"]


def _context(row: Mapping[str, Any]) -> str:
    return str(row.get("context") or row.get("text") or "")


def _answer(row: Mapping[str, Any]) -> str:
    """The first answer; SQuAD's own files have ``{"text": [...]}``."""
    answers = row.get("answers")
    texts = listed(answers.get("text") if isinstance(answers, Mapping) else answers)
    return str(texts[0]) if texts else ""


def _meta(row: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = row.get("meta")
    return meta if isinstance(meta, Mapping) else {}
