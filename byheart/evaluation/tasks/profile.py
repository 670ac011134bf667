"""Answers that depend on what a user wrote before: LaMP (Salemi et al. 2023, arXiv 2304.11406), as CCM asks it.

The records of LaMP-2 (news categories, or tags of films) and LaMP-3 (ratings), each with its ``output``: ``id``,
``input``, ``profile`` and ``output``. Entries of the profile are drawn at random and written one by one.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from byheart.data.records import Fields, required
from byheart.errors import InputError
from byheart.evaluation.results import Result
from byheart.evaluation.task import Answer, Item, Part, Question, Task, shuffled

_ENTRIES = {
    "category": 'the category for the article: "{text}" is "{category}"',
    "tag": 'the tag for the movie: "{description}" is "{tag}"',
    "score": 'the score for the review: "{text}" is "{score}"',
}
_OFFERED = re.compile(r"(?:categories|tags): \[(.*?)\]", re.DOTALL)
_RATINGS = ("1", "2", "3", "4", "5")


class Profile(Task):
    """Accuracy of a user's categories, or error of ratings, after so many entries of the profile were written (LaMP).

    The choice of the least total loss answers. Its labels are those that the input lists in brackets, the five
    ratings, or else all outputs of the data.

    Args:
        entries: how many were written when it is asked; users with fewer are left out there.
        words: an entry with more is left out.
    """

    name = "profile"
    asks = "choices"
    higher_is_better: ClassVar = {"absolute_error": False, "squared_error": False}
    unbounded = ("absolute_error", "squared_error")

    def __init__(self, *, entries: Sequence[int] = (1, 2, 4, 8, 16), words: int = 100) -> None:
        if not entries or min(entries) < 0 or words < 1:
            raise ValueError(f"entries must be numbers from 0 on and words 1 or more; they are {entries}, {words}")
        self.entries, self.words = entries, words

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per user whose profile is long enough for a question."""
        outputs = tuple(sorted({str(record["output"]) for record in records if record.get("output")}))
        for number, record in shuffled(records, seed):
            asked, right = str(required(record, "input", number)), str(required(record, "output", number))
            kind, texts = self._texts(record, number)
            random.Random(f"{seed} {number}").shuffle(texts)
            choices = _RATINGS if kind == "score" else _listed(asked) or outputs
            if right not in choices:
                raise InputError(f"Record {number} has the output '{right}', which is none of: {', '.join(choices)}.")
            counts = [k for k in sorted(set(self.entries)) if k <= len(texts)]
            if counts:
                about = {"kind": kind}
                questions = [Question(asked, (right,), choices, k, {"entries": k}, about=about) for k in counts]
                yield Item(tuple(texts[: counts[-1]]), tuple(questions))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """Accuracy of categories; of ratings, LaMP's absolute error too, and the squared one."""
        chosen, right = question.choices[answer.best()], question.answers[0]
        scores: dict[str, float | Part] = {"accuracy": float(chosen == right)}
        if question.about["kind"] == "score":
            off = abs(int(chosen) - int(right))
            scores |= {"absolute_error": float(off), "squared_error": float(off**2)}
        return scores

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """The root of the mean squared error, which LaMP prints."""
        return [row.mapped("rmse", math.sqrt) for row in rows if row.metric == "squared_error"]

    def _texts(self, record: Fields, number: int) -> tuple[str, list[str]]:
        """What the profile's entries say of the user, and their texts."""
        entries = required(record, "profile", number)
        kind = next((name for name in _ENTRIES if name in entries[0]), None)
        if kind is None:
            raise InputError(
                f"Record {number} has a profile without {' or '.join(_ENTRIES)}; LaMP-2 and LaMP-3 have one of them."
            )
        texts = [_ENTRIES[kind].format(**entry) for entry in entries]
        return kind, [f"{text}.\n" for text in texts if len(text.split()) <= self.words]


def _listed(asked: str) -> tuple[str, ...]:
    found = _OFFERED.search(asked)
    return tuple(name.strip() for name in found[1].split(",") if name.strip()) if found else ()
