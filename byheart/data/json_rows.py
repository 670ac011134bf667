"""JSON and JSON lines as rows, and text that may be compressed; what cannot be read is an InputError with its place.

What the rows mean is not known here, but for SQuAD's own files, whose questions lie within articles.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from byheart.errors import InputError

_BOM = "\ufeff"


def read_text(file: Path) -> str:
    """The text of a file, of a ``.gz`` what is compressed in it. Raises InputError."""
    try:
        return decode(file.read_bytes(), file.name)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"'{file}' cannot be read: {error}.") from error


def decode(content: bytes, name: str) -> str:
    """UTF-8 text, decompressed where the name ends in ``.gz``."""
    return (gzip.decompress(content) if name.endswith(".gz") else content).decode("utf-8")


def stream_lines(file: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a file of JSON lines, one after another; the file is never held whole. Raises InputError."""
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        # No line ends but at "\n": JSON strings may hold what else is taken for an end.
        with opened(file, "rt", encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _object_in(line, f"'{file}' line {number}")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"'{file}' cannot be read: {error}.") from error


def rows_of_lines(text: str, where: str) -> list[Mapping[str, Any]]:
    """The objects of JSON lines. Raises InputError with the line's number."""
    # splitlines() would also cut at separators that JSON strings may hold.
    lines = enumerate(text.split("\n"), start=1)
    return [_object_in(line, f"{where} line {number}") for number, line in lines if line.strip()]


def rows_of_json(text: str, where: str) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON array, or of one under ``data``; of SQuAD's own files, one per question. InputError."""
    whole = parse(text, where)
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


def parse(text: str, where: str) -> Any:
    """What JSON text says. Raises InputError."""
    try:
        return json.loads(text.removeprefix(_BOM))
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}.") from error


def _object_in(line: str, where: str) -> Mapping[str, Any]:
    row = parse(line, where)
    if not isinstance(row, dict):
        raise InputError(f"{where} is no JSON object.")
    return row


def listed(value: Any) -> list[Any]:
    """A list as it is; one text is a list of one."""
    return [value] if isinstance(value, str) and value else list(value) if isinstance(value, list | tuple) else []
