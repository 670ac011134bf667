"""Reading data sets: JSON lines, plain text, a folder of both, or a data set of the Hugging Face hub, as records.

One JSON object per line, or a list of them in a file; of SQuAD's own files, one per question. What is read of it:
``task`` (lm, qa, dialog; others with a question count as qa), ``context``, ``question``, ``answers`` and
``meta.turns``, ``meta.persona``. Records in the columns of others are recognised by ``layouts``. A plain text file is
one lm record. Nothing here knows tokens.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from byheart.data.hub import read_hub
from byheart.data.layouts import join_outputs, outputs_of, questions_of, recognise
from byheart.errors import InputError

Fields: TypeAlias = Mapping[str, Any]
"""One JSON object."""
_NEEDS = {"lm": "context", "qa": "question and answers", "dialog": "meta.turns of two turns or more"}
_KINDS = (".jsonl", ".json", ".txt", ".md")


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


def rows(source: str) -> list[Mapping[str, Any]]:
    """The same, as JSON objects of any fields. Raises InputError or UsageError."""
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _kind(file) in _KINDS and not questions_of(file))
    elif path.is_file():
        files = [path]
    elif _kind(path) in _KINDS or source.startswith((".", "/", "~")):
        raise InputError(f"There is no data file or folder '{source}'.")
    else:
        return list(recognise(read_hub(source), f"'{source}'"))
    return [found for file in files for found in recognise(_rows(file), f"'{file}'", _called(file))]


def required(record: Fields, name: str, number: int) -> Any:
    """A field; ``meta.turns`` is one inside another. Raises InputError with the record's number."""
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None or value == "" or value == []:
        raise InputError(f"Record {number} has no '{name}'; its fields are {', '.join(sorted(record)) or 'none'}.")
    return value


def _rows(file: Path) -> Iterable[Mapping[str, Any]]:
    text = _text(file)
    if file.suffix == ".json":
        found = list(_listed_in(text, f"'{file}'"))
        outputs = outputs_of(file)
        return found if outputs is None else join_outputs(file, found, _parse(_text(outputs), f"'{outputs}'"))
    if _kind(file) != ".jsonl":
        return [{"task": "lm", "context": text}]
    # splitlines() would also cut at separators that JSON strings may hold.
    lines = enumerate(text.split("\n"), start=1)
    return [_object_in(line, f"'{file}' line {number}") for number, line in lines if line.strip()]


def _called(file: Path) -> str:
    """What the records of a file are called that do not say it: published parts are often FOLDER/train.jsonl."""
    return f"{file.resolve().parent.name}/{file.name.partition('.')[0]}"


def _kind(file: Path) -> str:
    """The end of a file's name that says what it holds, of a compressed one that before it."""
    return Path(file.stem).suffix if file.suffix == ".gz" else file.suffix


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
        return (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"'{file}' cannot be read: {error}.") from error


def _listed_in(text: str, where: str) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON array, or of one under ``data``."""
    whole = _parse(text, where)
    found = whole.get("data") if isinstance(whole, dict) else whole
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InputError(f"{where} holds no list of JSON objects, nor one under 'data'.")
    for row in found:
        paragraphs = listed(row.get("paragraphs"))
        asked = any(isinstance(paragraph, Mapping) and "qas" in paragraph for paragraph in paragraphs)
        yield from _of_article(row, where) if asked else (row,)


def _of_article(article: Mapping[str, Any], where: str) -> Iterator[Mapping[str, Any]]:
    """The questions about an article of SQuAD's own files (arXiv 1606.05250, 1806.03822), one record per question.

    One that is impossible has no answers: its plausible ones are wrong. Raises InputError.
    """
    try:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [] if asked.get("is_impossible") else [str(answer["text"]) for answer in asked["answers"]]
                pair = {"context": paragraph["context"], "question": asked["question"]}
                meta = {"title": article.get("title", ""), "id": asked.get("id", "")}
                # Several people gave the same answer.
                yield {"task": "qa", **pair, "answers": list(dict.fromkeys(answers)), "meta": meta}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} has paragraphs with questions that are not as SQuAD's are: {error!r}.") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}.") from error


def _object_in(line: str, where: str) -> Mapping[str, Any]:
    row = _parse(line, where)
    if not isinstance(row, dict):
        raise InputError(f"{where} is no JSON object.")
    return row


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


def listed(value: Any) -> list[Any]:
    """A list as it is; one text is a list of one."""
    return [value] if isinstance(value, str) and value else list(value) if isinstance(value, list | tuple) else []
