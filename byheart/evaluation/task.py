"""What a task is: it turns records into items, and says how good each answer is.

An item is texts to write, one after another, and questions; a question may be asked after some of the texts. A task
does not know methods or models: what it gives is text, or tokens where an encoder made them, and what it judges is an
answer.
"""

from __future__ import annotations

import abc
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from byheart.data.records import Fields, required
from byheart.errors import UsageError
from byheart.evaluation.results import Result
from byheart.protocol.method import defaults
from byheart.text.encoder import ChatEncoder

Tokens: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """What is asked of a memory.

    Args:
        answers: the right ones.
        choices: continuations whose likelihood is measured; beside the words, where the task asks for these.
        after: how many texts were written when it is asked; all of them without it.
        conditions: what its number belongs to, such as a distance or a turn; rows are made for each.
        use_chat_template: put it into the chat template; else the model continues the bare text.
        about: whatever the task needs to judge the answer.
        max_tokens: of its answer; the task's without it.
        answer_prefix: what the answer is made to begin with.
        instruction: how to answer, said after the text; a method that selects by the question does not look at it.
        unconditional: what context-aware decoding asks the model without a memory; the same without it. Where the
            text is repeated in the question, this is the question without it: else both sides would see the text.
        tokens: the prompt as it is given to the model, in place of the text in a template; the text then says only by
            what a method selects.
        is_stripped: whether whitespace around the answer is no part of it.
        target: tokens that stand after the memory instead of a text, of which those from ``target_start`` on are
            predicted.
        record: the number, from 1, of the one record that asks it; 0 where several do. It is no part of what is asked.
        choice_tokens: of each choice, where a task makes these itself.
        prior: tokens after which each choice is also measured without any memory: how likely it is whatever was asked.
    """

    text: str = ""
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    after: int | None = None
    conditions: Fields = field(default_factory=dict)
    use_chat_template: bool = True
    about: Fields = field(default_factory=dict)
    max_tokens: int | None = None
    answer_prefix: str = ""
    instruction: str = ""
    unconditional: str = ""
    tokens: Tokens = ()
    is_stripped: bool = True
    target: Tokens = ()
    target_start: int = 1
    record: int = field(default=0, compare=False)
    choice_tokens: tuple[Tokens, ...] = ()
    prior: Tokens = ()

    @property
    def prompt(self) -> str:
        """All that is asked: the text, and how to answer it."""
        return f"{self.text}\n{self.instruction}" if self.instruction else self.text


@dataclass(frozen=True)
class Item:
    """Texts that are written in this order, each a string or its tokens, and what is asked about them.

    Args:
        use_chat_template: write the texts as turns of a conversation, where a method takes such; else as running text,
            which bare questions continue. Tokens are written as they are.
    """

    texts: tuple[str | Tokens, ...]
    questions: tuple[Question, ...]
    use_chat_template: bool = True

    @property
    def steps(self) -> int:
        """Texts to write and questions to ask."""
        return len(self.texts) + len(self.questions)

    @property
    def length(self) -> int:
        """Characters or tokens of its texts and its longest question."""
        asked = (max(len(question.text), len(question.target)) for question in self.questions)
        return sum(map(len, self.texts)) + max(asked, default=0)


@dataclass(frozen=True)
class Answer:
    """What a memory answers: words; and of each choice the summed loss in nats, the tokens, how many are likeliest.

    ``likeliest`` counts the tokens of a choice that the model would have chosen itself, given those before. A target
    counts as the only choice, without ``likeliest``. ``prior_losses`` are those after the question's prior, if any.
    """

    text: str = ""
    losses: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    likeliest: tuple[int, ...] = ()
    prior_losses: tuple[float, ...] = ()

    def best(self, *, each_token: bool = False) -> int:
        """The choice of the least loss, in total or per token; the first of equal ones.

        Where there is a prior, that of the largest gain over it.
        """
        counts = self.tokens if each_token else (1,) * len(self.losses)
        priors = self.prior_losses or (0.0,) * len(self.losses)
        return min(range(len(self.losses)), key=lambda n: (self.losses[n] - priors[n]) / counts[n])


@dataclass(frozen=True)
class Part:
    """One answer's share of a metric: a sum over so much weight; the metric is all sums over all weights."""

    total: float
    weight: float = 1.0


Totals: TypeAlias = Mapping[str, Float[Tensor, "..."]]
"""By metric, the sum of the parts' totals over all items, or over each bootstrap sample of them."""


@runtime_checkable
class ShareLeft(Protocol):
    """A method's ``share_left``: what its rule leaves of a text after later writes, or None without such a rule."""

    def __call__(self, *, before: int, later: int) -> float | None: ...


class Task(abc.ABC):
    """One way to measure a memory. Subclasses are final; their arguments are options, kept under the same names."""

    name: ClassVar[str]
    """How users call it; the key of the table in ``byheart.evaluation.tasks``."""
    asks: Literal["words", "choices", "target", "stream"] = "words"
    """Whether answers are generated, or the losses of each question's choices or target measured.

    A target that is a ``stream`` is written while it is predicted, as far as a method needs that to keep its size.
    """
    max_tokens: ClassVar[int] = 32
    """Of an answer in words, at most."""
    stop: ClassVar[tuple[str, ...]] = ()
    """Text that ends an answer."""
    sources: ClassVar[Fields] = {}
    """Data sets of the Hugging Face hub that it was published with: short name -> name on the hub."""
    references: ClassVar[tuple[str, ...]] = ()
    """Methods that are measured beside those asked for: ``compare`` and ``expect`` relate the others to them."""
    higher_is_better: ClassVar[Mapping[str, bool | None]] = {}
    """Of which metrics less is better, False, or neither more nor less, None; of all others more is."""
    unbounded: ClassVar[Sequence[str]] = ()
    """Metrics that are no shares of hits although each answer may be 0 or 1, such as errors."""
    optional_metrics: ClassVar[Mapping[str, str]] = {}
    """Metrics that only an option of the task measures: metric -> option."""
    pooled: ClassVar[bool] = False
    """Whether several data sets, each ``PATH`` or ``PATH:weight``, also give rows of all of them together."""
    control: bool = False
    """Whether each question is also asked of the memory of the next item beside it."""

    @abc.abstractmethod
    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """Items made of a data set's records, in the order of the records. Raises InputError."""

    @abc.abstractmethod
    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """How good an answer is, by metric.

        A metric of classes, such as macro F1, has a part for each of them, ``metric/class``: its number is the mean
        over all classes that occur, in which each counts once.
        """

    def official(self, question: Question, text: str) -> tuple[str, Fields] | None:
        """An answer as the task's official scorer reads it: the name of a file of JSON lines, and a line; else None."""
        return None

    def split(self, encoder: ChatEncoder) -> Sequence[Task]:
        """The tasks of which it consists, each with items of its own; ``encoder`` makes their tokens if they want any.

        An option of a method may have a value for each of them, as in ``recent=4/16``.
        """
        return (self,)

    def batches(self, items: Mapping[int, Item], size: int) -> list[list[int]]:
        """Which items, by number, are measured side by side.

        Items of like lengths are, so that less is padding; the longest come first: what does not fit shows early.
        """
        numbers = sorted(items, key=lambda number: -items[number].length)
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]

    def compare(self, spec: str, totals: Mapping[str, Totals], control: Totals) -> Totals:
        """More metrics of a method, from its totals and those of ``references``, and from those of its control."""
        return {}

    def options(self) -> dict[str, Any]:
        """The arguments it was made with."""
        return {name: vars(self)[name] for name in defaults(type(self))}

    def chosen(self) -> dict[str, Any]:
        """The options that are not at their defaults: they distinguish answers, whatever options come later."""
        known = defaults(type(self))
        return {name: value for name, value in self.options().items() if value != known[name]}

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """More rows, made of those of one method on one data set, such as means of metrics."""
        return []

    def expect(
        self, rows: Sequence[Result], references: Mapping[str, Sequence[Result]], share_left: ShareLeft
    ) -> list[Result]:
        """Rows of what a method's rule lets expect, made of its rows and those of ``references``, by their specs."""
        return []


def label_parts(label: str, right: str) -> dict[str, float | Part]:
    """Whether a label is the right one, and its share of the F1 of each label.

    Every string that is right or answered is a label: stray words lower macro F1 as labels of their own.
    """
    # F1 is twice the hits over all times that a label is right or answered.
    shares = {right: Part(2.0, 2.0)} if label == right else {right: Part(0.0), label: Part(0.0)}
    return {"accuracy": float(label == right), **{f"macro_f1/{name}": part for name, part in shares.items()}}


def shuffled(records: Sequence[Fields], seed: int, *, first: int = 0) -> list[tuple[int, Fields]]:
    """Records with their numbers, from 1, in a random order that a seed decides.

    Args:
        first: of all records, only so many from the beginning; 0 is all.
    """
    numbered = list(enumerate(records[: first or None], start=1))
    random.Random(seed).shuffle(numbered)
    return numbered


def cut_text(text: str, tokens: int, encoder: ChatEncoder | None) -> str:
    """A text cut after so many tokens, 0 of which are all. Raises UsageError where nothing can count them."""
    if not tokens:
        return text
    if encoder is None:
        raise UsageError(f"A text is to be cut after {tokens:,} tokens, but there is no model here that has tokens.")
    return encoder.cut(text, tokens)


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
