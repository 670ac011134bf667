"""Records in the layout of others, read as byheart's own: by their columns, and where that cannot be, by code.

What is recognised stands in ``layouts.toml``. NaturalQuestions and LaMP need code: an answer of the first is a span of
a page's tokens, and the second keeps its questions and its answers in two files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from byheart.data.columns import Columns, Fields, map_columns
from byheart.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NQ = {"question_text", "annotations"}
# A page and the places where an answer might be: nothing reads them again, and they are nearly all of a large file.
_NQ_PAGE = {"document_text", "document_html", "document_tokens", "long_answer_candidates"}
_QUESTIONS, _OUTPUTS = "questions", "outputs"


@dataclass(frozen=True)
class Layout:
    """Which records are in it, and the fields that their columns become."""

    name: str
    needs: Sequence[str]
    columns: Columns
    fixed: Fields = field(default_factory=dict)


@cache
def layouts() -> tuple[Layout, ...]:
    """All that are recognised, in the order in which they are tried."""
    stored = tomllib.loads(Path(__file__).with_name("layouts.toml").read_text(encoding="utf-8"))
    return tuple(Layout(**entry) for entry in stored["layout"])


def recognise(rows: Iterable[Fields], source: str, dataset: str = "") -> Iterator[Fields]:
    """Records with byheart's fields beside their own, where their layout is known; others as they are.

    Args:
        dataset: what those are called that do not say it; of a file, its folder and its name.

    Raises InputError with the record's number where a column holds what its layout does not.
    """
    for number, row in enumerate(rows):
        if row.get("meta") is not None:
            yield row
        elif row.keys() >= _NQ:
            kept = {name: value for name, value in row.items() if name not in _NQ_PAGE}
            yield {**kept, **_natural_question(row, number, source)}
        else:
            layout = _find(frozenset(row), row.get("context") is not None)
            named = {"dataset": dataset} if dataset else {}
            yield row if layout is None else {**named, **row, **_mapped(row, layout, number, source)}


def join_outputs(file: Path, rows: list[Fields], outputs: Any) -> list[Fields]:
    """LaMP's questions (arXiv 2304.11406) with the output of each. Raises InputError where one has none."""
    golds = outputs.get("golds") if isinstance(outputs, Mapping) else None
    if not isinstance(golds, list):
        raise InputError(f"'{outputs_of(file)}' holds no list under 'golds', as LaMP's outputs do.")
    known = {
        str(gold["id"]): gold["output"]
        for gold in golds
        if isinstance(gold, Mapping) and {"id", "output"} <= gold.keys()
    }
    for number, row in enumerate(rows, start=1):
        if str(row.get("id")) not in known:
            raise InputError(
                f"'{file}' record {number} has the id {row.get('id')!r}, of which '{outputs_of(file)}' has no output."
            )
    return [{**row, "output": known[str(row["id"])]} for row in rows]


def outputs_of(file: Path) -> Path | None:
    """The file of outputs that belongs to one of LaMP's questions, where it is there."""
    found = file.with_name(file.name.replace(_QUESTIONS, _OUTPUTS))
    return found if file.suffix == ".json" and _QUESTIONS in file.name and found.is_file() else None


def questions_of(file: Path) -> Path | None:
    """The file of questions that belongs to one of LaMP's outputs, where it is there."""
    found = file.with_name(file.name.replace(_OUTPUTS, _QUESTIONS))
    return found if file.suffix == ".json" and _OUTPUTS in file.name and found.is_file() else None


@cache
def _find(columns: frozenset[str], has_context: bool) -> Layout | None:
    """The first layout that fits; what has a context of its own is only in one that needs it."""
    able = (layout for layout in layouts() if "context" in layout.needs or not has_context)
    return next((layout for layout in able if columns.issuperset(layout.needs)), None)


def _mapped(row: Fields, layout: Layout, number: int, source: str) -> dict[str, Any]:
    fixed = {**layout.fixed}
    found = map_columns(row, layout.columns, number=number, source=f"{source} (read as {layout.name})")
    choices, label = fixed.get("choices"), found.get("label")
    # A test part without answers has the label -1.
    if choices and isinstance(label, int) and 0 <= label < len(choices):
        fixed["answers"] = [choices[label]]
    return {**fixed, **found}


# ---- NaturalQuestions ----


def _natural_question(row: Fields, number: int, source: str) -> dict[str, Any]:
    """A record of NaturalQuestions' own files: the paragraph of the long answer, else the page.

    An answer is what an annotator marked in it, or their yes or no; there is none where nobody found one.
    """
    try:
        tokens = _page(row)
        marks = [mark for mark in row["annotations"] if mark["long_answer"]["start_token"] >= 0]
        long = marks[0]["long_answer"] if marks else {"start_token": 0, "end_token": len(tokens)}
        answers = [_words(tokens, short) for mark in marks for short in mark["short_answers"]]
        answers += [mark["yes_no_answer"].lower() for mark in marks if mark.get("yes_no_answer", "NONE") != "NONE"]
        return {
            "task": "qa",
            "context": _words(tokens, long),
            "question": str(row["question_text"]),
            "answers": list(dict.fromkeys(filter(None, answers))),
        }
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{source}, record {number + 1} is not as NaturalQuestions' own are: {error!r}.") from error


def _page(row: Fields) -> list[tuple[str, bool]]:
    """A page's tokens, and whether each is a tag; the training file has them as text, the others one by one."""
    if "document_text" in row:
        return [(token, token.startswith("<") and token.endswith(">")) for token in row["document_text"].split(" ")]
    return [(token["token"], token["html_token"]) for token in row["document_tokens"]]


def _words(tokens: Sequence[tuple[str, bool]], span: Mapping[str, int]) -> str:
    return " ".join(token for token, is_tag in tokens[span["start_token"] : span["end_token"]] if not is_tag)
