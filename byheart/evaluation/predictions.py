"""Answers in a file of their own, in the form of FastMem's (arXiv 2406.16069): read and scored, or written.

    {"input_index": 0, "assigned_model": "llama3", "string": ["The answer is: Ann."]}

``input_index`` counts the records of a data file from 0. A file may have the answers of several models; each is a
method in the rows. The released code adds to a file that is there, so a record that is answered twice is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from byheart.data.hub import short_name
from byheart.data.json_rows import lines_of, rows_of_lines
from byheart.data.records import rows as read_records
from byheart.errors import InputError, UsageError
from byheart.evaluation.results import Result
from byheart.evaluation.rows import make_rows
from byheart.evaluation.run_folder import Outcome
from byheart.evaluation.runner import parts_of
from byheart.evaluation.task import Answer, Question, Task
from byheart.files import replacing

Predictions: TypeAlias = Mapping[str, Mapping[int, str]]
"""By model, the answer to each record, counted from 0."""
_FIELDS = ("input_index", "assigned_model", "string")


def read(path: str | Path) -> Predictions:
    """The answers in a file. Raises InputError with the line that cannot be used."""
    found: dict[str, dict[int, str]] = {}
    for number, row in enumerate(rows_of_lines(lines_of(Path(path)), f"'{path}'"), start=1):
        where = f"'{path}', prediction {number},"
        index, model, text = _fields(row, where)
        if index in found.setdefault(model, {}):
            raise InputError(
                f"{where} is a second answer of '{model}' to record {index}: two runs wrote into this file. Keep the "
                "lines of one."
            )
        found[model][index] = text
    if not found:
        raise InputError(f"'{path}' holds no prediction.")
    return found


def _fields(row: Mapping[str, Any], where: str) -> tuple[int, str, str]:
    if missing := [name for name in _FIELDS if name not in row]:
        raise InputError(f"{where} has no '{missing[0]}'; a prediction has {', '.join(_FIELDS)}.")
    index, model, texts = (row[name] for name in _FIELDS)
    if type(index) is not int or index < 0:
        raise InputError(f"{where} has the input_index {index!r}; it must be a whole number, 0 for the first record.")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or len(texts) != 1 or not isinstance(texts[0], str):
        raise InputError(f"{where} has no one text in 'string', but {texts!r}.")
    return index, str(model), texts[0].strip()


def score(task: Task, predictions: str | Path, data: str) -> list[Result]:
    """The rows of answers that were made elsewhere, or by another version: a method for each model.

    Args:
        task: one that asks for words, a question for each record, such as faithful and summary.
        predictions: JSON lines with ``input_index``, ``assigned_model`` and ``string``, a list of one text.
        data: the file that was asked about, or its name on the hub.

    Records without an answer are left out: ``n`` says how many have one. Raises InputError and UsageError.
    """
    if task.asks != "words":
        raise UsageError(f"{task.name} measures likelihoods, so no words can be scored.")
    source = task.sources.get(data, data)
    answers, records = read(predictions), list(read_records(source))
    items = list(task.items(records, 0))
    asked = {question.record - 1: question for item in items for question in item.questions if question.record}
    if not asked:
        raise UsageError(f"{task.name} has no question that belongs to one record, so predictions cannot be matched.")
    name, found = data if data in task.sources else Path(short_name(source)).stem, list[Result]()
    for model, texts in answers.items():
        if unknown := sorted(texts.keys() - asked.keys()):
            raise InputError(
                f"'{predictions}' answers record {unknown[0]} as '{model}', counted from 0, but '{data}' has "
                f"{len(records):,}, of which {task.name} asks about {len(asked):,}. Give the file that was asked about."
            )
        outcomes = [_outcome(task, index, asked[index], text) for index, text in sorted(texts.items())]
        rows = make_rows(task, name, model, dict.fromkeys((model, *task.references), outcomes))
        found += rows + task.summary(rows)
    return found


def _outcome(task: Task, index: int, question: Question, text: str) -> Outcome:
    """What one answer is worth; what it cost is not known."""
    parts = parts_of(task, question, Answer(text))
    return Outcome(index, "", 0, question.conditions, text, parts, 0, 0, 0.0, 0.0)


def write(path: Path, model: str, answers: Iterable[tuple[Question, str]]) -> None:
    """Write a file of answers, whole or not at all, in the order of the records. Raises UsageError."""
    numbered = sorted((question.record - 1, text) for question, text in answers)
    if not numbered or numbered[0][0] < 0:
        raise UsageError("These questions do not belong to one record each, so they have no place among predictions.")
    lines = [dict(zip(_FIELDS, (index, model, [text]), strict=True)) for index, text in numbered]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        scratch.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
