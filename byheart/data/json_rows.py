"""JSON and JSON lines as rows, and text that may be compressed; what cannot be read is an InputError with its place.

What the rows mean is not known here, but for SQuAD's and NewsQA's own files, whose questions lie within articles.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
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


def lines_of(file: Path) -> Iterator[str]:
    """The lines of a file, one after another: some files are larger than the memory. Raises InputError."""
    try:
        # Any other separator may stand within a JSON string.
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8", newline="\n") as lines:
            yield from lines
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"'{file}' cannot be read: {error}.") from error


def rows_of_lines(lines: Iterable[str], where: str) -> Iterator[Mapping[str, Any]]:
    """The objects of JSON lines. Raises InputError with the line's number."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _object_in(line, f"{where} line {number}")


def rows_of_json(text: str, where: str) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON array, or of one under ``data``; of SQuAD's and NewsQA's own files, one per question.

    Raises InputError.
    """
    whole = parse(text, where)
    found = whole.get("data") if isinstance(whole, dict) else whole
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InputError(f"{where} holds no list of JSON objects, nor one under 'data'.")
    for row in found:
        paragraphs = listed(row.get("paragraphs"))
        asked = any(isinstance(paragraph, Mapping) and "qas" in paragraph for paragraph in paragraphs)
        if asked:
            yield from _of_article(row, where)
        elif "storyId" in row:
            yield from _of_story(row, where)
        else:
            yield row


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
                yield {"task": "qa", "dataset": "squad", **pair, "answers": list(dict.fromkeys(answers)), "meta": meta}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} has paragraphs with questions that are not as SQuAD's are: {error!r}.") from error


def _of_story(story: Mapping[str, Any], where: str) -> Iterator[Mapping[str, Any]]:
    """The questions about a story of NewsQA's own file (arXiv 1611.09830), one record per question.

    An answer is a span of characters; where people found none, or found the question bad, there is none. InputError.
    """
    try:
        for asked in story["questions"]:
            found, pair = asked["consensus"], {"context": story["text"], "question": asked["q"]}
            answers = [story["text"][found["s"] : found["e"]].strip()] if "s" in found else []
            meta = {"id": story["storyId"], "type": story.get("type", "")}
            yield {"task": "qa", "dataset": "newsqa", **pair, "answers": answers, "meta": meta}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} has a story with questions that are not as NewsQA's are: {error!r}.") from error


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
