"""What is measured beside the gap: a task turns records into items, and says how good each answer is.

An item is texts to write, one after another, and questions; a question may be asked after some of the texts. A task
does not know memories, models or tokens: what it gives is text, and what it judges is an answer.
"""

from __future__ import annotations

import abc
import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from byheart.data.records import Fields, required
from byheart.evaluation.results import Result


@dataclass(frozen=True)
class Question:
    """What is asked of a memory.

    Args:
        answers: the right ones.
        choices: continuations whose likelihood is measured, where the task does not ask for words.
        after: how many texts were written when it is asked; all of them without it.
        at: what its number belongs to, such as a distance or a turn; rows are made for each.
        framed: put into the chat template; else the model goes on from the bare text.
        about: whatever the task needs to judge the answer.
        max_tokens: of its answer; the task's without it.
        begins: what the answer is made to begin with.
    """

    text: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    after: int | None = None
    at: Fields = field(default_factory=dict)
    framed: bool = True
    about: Fields = field(default_factory=dict)
    max_tokens: int | None = None
    begins: str = ""


@dataclass(frozen=True)
class Item:
    """Texts that are written in this order, and what is asked about them.

    Args:
        framed: write the texts as turns of a conversation, where a memory keeps such; else as running text, from which
            bare questions go on.
    """

    texts: tuple[str, ...]
    questions: tuple[Question, ...]
    framed: bool = True


@dataclass(frozen=True)
class Answer:
    """What a memory answers: words, or for each choice its summed loss in nats, its tokens, and how many are likeliest.

    ``likeliest`` counts the tokens of a choice that the model would have chosen itself, given those before.
    """

    text: str = ""
    losses: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    likeliest: tuple[int, ...] = ()

    def best(self, *, each_token: bool = False) -> int:
        """The choice of the least loss, in all or a token."""
        counts = self.tokens if each_token else (1,) * len(self.losses)
        return min(range(len(self.losses)), key=lambda n: self.losses[n] / counts[n])


@dataclass(frozen=True)
class Part:
    """One answer's share of a metric: a sum over so much weight; the metric is all sums over all weights."""

    total: float
    weight: float = 1.0


class Task(abc.ABC):
    """One way to measure a memory. Subclasses are final; their arguments are options, kept under the same names."""

    name: ClassVar[str]
    """How users call it; the key of the table in ``byheart.tasks``."""
    asks: Literal["words", "choices"] = "words"
    """Whether answers are generated, or the likelihoods of each question's choices measured; an option may decide."""
    max_tokens: ClassVar[int] = 32
    """Of an answer in words, at most."""
    stop: ClassVar[tuple[str, ...]] = ()
    """Text that ends an answer."""
    sources: ClassVar[Fields] = {}
    """Data sets of the Hugging Face hub that it was published with: short name -> name on the hub."""

    @abc.abstractmethod
    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """Items made of a data set's records, in the order of the records. Raises InputError."""

    @abc.abstractmethod
    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """How good an answer is, by metric.

        A metric of classes, such as macro F1, has a part for each of them, ``metric/class``: its number is the mean
        over all classes that occur, in which each counts once.
        """

    def chosen(self) -> dict[str, Any]:
        """The options that are not at their defaults: by them answers are told apart, whatever options come later."""
        signature = inspect.signature(type(self)).parameters.values()
        return {p.name: vars(self)[p.name] for p in signature if vars(self)[p.name] != p.default}

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """More rows, made of those of one memory on one data set: means of metrics, a law, a line to compare with."""
        return []


def shuffled(records: Sequence[Fields], seed: int) -> list[tuple[int, Fields]]:
    """Records with their numbers, from 1, in a random order that a seed decides."""
    numbered = list(enumerate(records, start=1))
    random.Random(seed).shuffle(numbered)
    return numbered


def is_answered(record: Fields) -> bool:
    """Whether a record has a right answer; where a question has none, SQuAD's own files have ``{"text": []}``."""
    answers = record.get("answers")
    return bool(answers.get("text") if isinstance(answers, Mapping) else answers)


def answers_of(record: Fields, number: int) -> tuple[str, ...]:
    """A record's right answers; SQuAD's own files have ``{"text": [...]}``. Raises InputError."""
    answers = required(record, "answers", number)
    if isinstance(answers, Mapping):
        answers = required(record, "answers.text", number)
    return (answers,) if isinstance(answers, str) else tuple(map(str, answers))
