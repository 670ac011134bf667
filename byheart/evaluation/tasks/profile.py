"""Answers that depend on what a user wrote before: LaMP (Salemi et al. 2023, arXiv 2304.11406), as CCM asks it.

LaMP's own questions with the outputs beside them, of any of its seven tasks: each record has ``id``, ``input``,
``profile`` and ``output``. Entries of the profile are drawn at random and written one by one. Which task it is, the
fields of the profile say.
"""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from byheart.data.records import Fields, required
from byheart.errors import InputError
from byheart.evaluation.metrics import summary as summary_scores
from byheart.evaluation.results import Result
from byheart.evaluation.task import Answer, Item, Part, Question, Task, label_parts, shuffled
from byheart.text.encoder import ChatEncoder


class _Kind(NamedTuple):
    """One of LaMP's tasks: the fields of its profiles, what is written of an entry, and what answers it has.

    Without ``labels`` those that the input lists, or all outputs, are its labels; without any it is answered in words,
    of which ``long`` is the field that is cut.
    """

    name: str
    fields: tuple[str, ...]
    entry: str
    labels: tuple[str, ...] = ()
    long: str = ""


_RATINGS = ("1", "2", "3", "4", "5")
_REFERENCES = ("[1]", "[2]")
# In this order: the first whose fields are there. Citations differ from titles by their outputs alone.
_KINDS = (
    _Kind("category", ("text", "category"), 'the category for the article: "{text}" is "{category}"'),
    _Kind("tag", ("description", "tag"), 'the tag for the movie: "{description}" is "{tag}"'),
    _Kind("score", ("text", "score"), 'the score for the review: "{text}" is "{score}"', _RATINGS),
    _Kind("citation", ("title", "abstract"), 'a paper by the same author: "{title}"', _REFERENCES),
    _Kind("title", ("title", "abstract"), 'the title for the abstract: "{abstract}" is "{title}"', long="abstract"),
    _Kind("headline", ("text", "title"), 'the title for the text: "{text}" is "{title}"', long="text"),
    _Kind("tweet", ("text",), 'a text by the same author: "{text}"', long="text"),
)
_OFFERED = re.compile(r"(?:categories|tags): \[(.*?)\]", re.DOTALL)


class Profile(Task):
    """What a user would say, after so many entries of the profile were written (LaMP).

    Accuracy and macro F1 of categories, tags and citations (LaMP-1 and 2), errors of ratings (LaMP-3), ROUGE of titles,
    headlines and tweets in words (LaMP-4 to 7). Of labels that of the least total loss answers: those that the input
    lists in brackets, the five ratings, the two references, or else all outputs of the data.

    Args:
        entries: how many were written when it is asked; users with fewer are left out there.
        words: an entry with more is left out; where the answer is in words, its text is cut to as many.
    """

    name = "profile"
    max_tokens = 64
    higher_is_better: ClassVar = {"absolute_error": False, "squared_error": False}
    unbounded = ("absolute_error", "squared_error")

    def __init__(self, *, entries: Sequence[int] = (1, 2, 4, 8, 16), words: int = 100) -> None:
        if not entries or min(entries) < 0 or words < 1:
            raise ValueError(f"entries must be numbers from 0 on and words 1 or more; they are {entries}, {words}")
        self.entries, self.words = entries, words
        self.asks = "choices"

    def split(self, encoder: ChatEncoder) -> Sequence[Task]:
        """Itself, for one data set: the records decide whether it is answered in words."""
        return (copy.copy(self),)

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per user whose profile is long enough for a question."""
        outputs = tuple(sorted({str(record["output"]) for record in records if record.get("output")}))
        kinds = {number: _kind(record, number) for number, record in enumerate(records, start=1)}
        in_words = {bool(kind.long) for kind in kinds.values()}
        if len(in_words) > 1:
            raise InputError("Some of these records are answered in words and some by a label; give each LaMP alone.")
        if True in in_words:
            # A package that is not there is named before anything is generated.
            summary_scores.rouge("", "")
            self.asks = "words"
        for number, record in shuffled(records, seed):
            kind, asked, right = kinds[number], str(required(record, "input", number)), str(record["output"])
            texts = self._texts(kind, record)
            random.Random(f"{seed} {number}").shuffle(texts)
            choices = () if kind.long else kind.labels or _listed(asked) or outputs
            if choices and right not in choices:
                raise InputError(f"Record {number} has the output '{right}', which is none of: {', '.join(choices)}.")
            counts = [k for k in sorted(set(self.entries)) if k <= len(texts)]
            if counts:
                about = {"kind": kind.name}
                questions = [Question(asked, (right,), choices, k, {"entries": k}, about=about) for k in counts]
                yield Item(tuple(texts[: counts[-1]]), tuple(questions))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """ROUGE of words, without a stemmer; accuracy of labels; of ratings the absolute and the squared error too."""
        right = question.answers[0]
        if not question.choices:
            found = summary_scores.rouge(answer.text, right)
            return {"rouge1": found.rouge1, "rouge_l": found.rouge_l}
        chosen = question.choices[answer.best()]
        if question.about["kind"] == "score":
            off = abs(int(chosen) - int(right))
            errors = {"absolute_error": float(off), "squared_error": float(off**2)}
            return {"accuracy": float(chosen == right), **errors}
        return label_parts(chosen, right)

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """The root of the mean squared error, which LaMP prints."""
        return [row.mapped("rmse", math.sqrt) for row in rows if row.metric == "squared_error"]

    def _texts(self, kind: _Kind, record: Fields) -> list[str]:
        """What is written of each entry of a profile."""
        entries: list[Mapping[str, Any]] = [*record["profile"]]
        if kind.long:
            cut = [{**entry, kind.long: " ".join(str(entry[kind.long]).split()[: self.words])} for entry in entries]
            return [f"{kind.entry.format(**entry)}.\n" for entry in cut]
        texts = [kind.entry.format(**entry) for entry in entries]
        return [f"{text}.\n" for text in texts if len(text.split()) <= self.words]


def _kind(record: Fields, number: int) -> _Kind:
    """Which of LaMP's tasks a record is of. Raises InputError."""
    entries, right = required(record, "profile", number), str(required(record, "output", number))
    for kind in _KINDS:
        is_meant = kind.name != "citation" or right in _REFERENCES
        if is_meant and all(set(kind.fields) <= entry.keys() for entry in entries):
            return kind
    wanted = "; ".join(" and ".join(kind.fields) for kind in _KINDS)
    raise InputError(f"Record {number} has a profile whose entries have none of LaMP's fields: {wanted}.")


def _listed(asked: str) -> tuple[str, ...]:
    found = _OFFERED.search(asked)
    return tuple(name.strip() for name in found[1].split(",") if name.strip()) if found else ()
