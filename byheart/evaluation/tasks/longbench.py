"""LongBench's English tasks (arXiv 2308.14508): the context is written, the rest of the official prompt is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from byheart.data.records import Fields, required
from byheart.errors import UnknownNameError
from byheart.evaluation.metrics import longbench as longbench_scores
from byheart.evaluation.results import Result, average
from byheart.evaluation.task import Answer, Item, Part, Question, Task, answers_of, shuffled


class _Prompt(NamedTuple):
    """The official prompt before and after the context, with the tokens of an answer at most.

    Where a prompt ends in examples, the model continues them; as published, it is not put into the chat template.
    """

    before: str
    after: str
    max_tokens: int
    use_chat_template: bool = True


@cache
def _prompts() -> dict[str, _Prompt]:
    """By data set; the slip "asconcisely" is the published one."""
    stored = json.loads(Path(__file__).with_name("longbench.json").read_text(encoding="utf-8"))
    return {subset: _Prompt(**prompt) for subset, prompt in stored.items()}


class LongBench(Task):
    """LongBench's own score of each English data set, answered from what a memory kept of the context.

    The official prompt is cut where the context ends: what stands before is written with it, the rest is the question.

    Args:
        words: of the context, the last so many; 0 is all. Published runs keep the last tokens of the whole prompt.
    """

    name = "longbench"

    def __init__(self, *, words: int = 0) -> None:
        if words < 0:
            raise ValueError(f"words must be 0 or more; it is {words}")
        self.words = words

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per record."""
        for number, record in shuffled(records, seed):
            subset, answers = str(required(record, "dataset", number)), answers_of(record, number)
            if subset not in _prompts():
                raise UnknownNameError(f"English LongBench data set (record {number})", subset, _prompts())
            prompt, context = _prompts()[subset], str(required(record, "context", number))
            # Of trec alone the classes are needed; other records have null.
            classes = tuple(required(record, "all_classes", number)) if subset == "trec" else ()
            asked = prompt.after
            if "{input}" in asked:
                asked = asked.replace("{input}", str(required(record, "input", number)))
            question = Question(
                asked,
                answers,
                conditions={"subset": subset},
                use_chat_template=prompt.use_chat_template,
                about={"classes": classes},
                max_tokens=prompt.max_tokens,
            )
            text = prompt.before + _last_words(context, self.words)
            yield Item((text,), (question,), use_chat_template=prompt.use_chat_template)

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """By the scorer of its data set."""
        subset, classes = question.conditions["subset"], question.about["classes"]
        return {"score": longbench_scores.score(subset, answer.text, question.answers, classes=classes)}

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """The mean over data sets, where there are several; its bounds are the means of theirs, mostly too wide."""
        if len(rows) < 2:
            return []
        n, clusters = sum(row.n for row in rows), sum(row.clusters for row in rows)
        kept = round(sum(row.bytes * row.n for row in rows) / n)
        seconds = sum(row.seconds * row.n for row in rows) / n
        return [
            average(
                rows, metric="average", n=n, clusters=clusters, bytes=kept, seconds=seconds, conditions={}, costs={}
            )
        ]


def _last_words(text: str, words: int) -> str:
    """The end of a text, whitespace between its words as it is; all of it for 0."""
    begins = [found.start() for found in re.finditer(r"\S+", text)] if words else []
    return text[begins[-words] :] if len(begins) > words else text
