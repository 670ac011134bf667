"""Knowledge retention of MemoryLLM (arXiv 2402.04624): what is left of a text after others were written."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from byheart.data.records import Fields, stream_rows
from byheart.errors import InputError, UsageError, require_one_of
from byheart.evaluation.metrics import LAW
from byheart.evaluation.results import Result
from byheart.evaluation.task import Answer, Item, Part, Question, ShareLeft, Task, Tokens
from byheart.evaluation.tasks.short_answers import AnswerLimit, by_context, contexts, filled, judge, listed, texts_of
from byheart.text.encoder import ChatEncoder

POSITIONS = ("begin", "end", "random")
TOKENS = 512
"""Of a published text, at most."""


class Retention(Task):
    """Hits of short answers after so many unrelated texts, and the law by which a pool forgets.

    A text is written, then ``distractors`` others; its questions are asked before the first, after every ``every`` of
    them, and after the last. The others are the same for all items, except for the item's own text. Of a method that
    drops slots by chance, rows of the metric ``law`` say what accuracy that leaves.

    Args:
        words: of a distractor, at most; the published ones have 512 tokens.
        answer_words: of a question's first answer, at most.
        before: other texts that are written first; as many as a pool holds fill it, as in the paper, and with 0 the
            memory is fresh, so that a pool drops nothing until it is full.
        position: of the item's text among the others: ``begin``, ``end`` or ``random``. Unless it is the first, the
            questions are asked once all are written, and each number of distractors makes items of its own.
        other: data whose first texts are the distractors, in their order; without it they are other items' texts.
        indices: a published list (``.npy``) of the questions to ask, one for each item; nothing else chooses them.
        answer_tokens: of a question's first answer, at most, in place of words; 0 counts words.
        published: texts of at most 512 tokens, "Context: TEXT" and "Questions: QUESTION Answer:" without a chat
            template or special tokens, and answers of 10 tokens; ``other`` is needed, and its texts are joined.
    """

    name = "retention"
    references = ("nothing",)
    encoder: ChatEncoder

    def __init__(
        self,
        *,
        distractors: int = 20,
        every: int = 5,
        words: int = 350,
        answer_words: int = 3,
        before: int = 0,
        position: str = "begin",
        other: str = "",
        indices: str = "",
        answer_tokens: int = 0,
        published: bool = False,
    ) -> None:
        if min(distractors, every, words, answer_words) < 1:
            raise ValueError("distractors, every, words and answer_words must be 1 or more")
        if min(before, answer_tokens) < 0:
            raise ValueError(f"before and answer_tokens must be 0 or more; they are {before} and {answer_tokens}")
        require_one_of("position", position, POSITIONS)
        self.distractors, self.every, self.words, self.answer_words = distractors, every, words, answer_words
        self.before, self.position, self.other, self.indices = before, position, other, indices
        self.answer_tokens, self.published = answer_tokens, published

    def split(self, encoder: ChatEncoder) -> Sequence[Task]:
        """Itself, with the encoder that counts tokens. Raises UsageError where published distractors have no source."""
        if self.published and not self.other:
            raise UsageError("Published distractors come from other data: give other=train-v2.0.json, or the like.")
        task = copy.copy(self)
        task.encoder = encoder
        return (task,)

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per text that is asked about, with all of its questions at each point; see ``position``."""
        spare, needed = self._spare(records, seed), self.distractors + self.before
        points = sorted({*range(0, self.distractors, self.every), self.distractors})
        for number, (text, questions) in enumerate(self._texts(records, seed)):
            others = [written for other, written in spare if other != text]
            if len(others) < needed:
                raise InputError(f"{len(spare)} different texts give no {needed} distractors; ask for fewer.")
            later, first = others[: self.distractors], others[self.distractors : needed]
            own = self._tokens(f"Context: {text}") if self.published else f"{text}\n"
            if self.position == "begin":
                yield self._item([*first, own, *later], questions, points)
                continue
            for point in points:
                draw = random.Random(f"{seed} {number} {point}")
                place = draw.randint(0, point) if self.position == "random" else point
                mixed = [*first, *later[:place], own, *later[place:point]]
                yield self._item(mixed, questions, [point])

    def _texts(self, records: Sequence[Fields], seed: int) -> Iterator[tuple[str, Sequence[Question]]]:
        """What is asked, and about which text."""
        if self.indices:
            found = listed(records, self.indices, published=self.published)
            return ((text, (question,)) for text, question in found)
        limit = AnswerLimit.words(self.answer_words)
        if self.answer_tokens:
            limit = AnswerLimit.tokens(self.answer_tokens, self.encoder)
        texts = by_context(records, seed, limit, published=self.published)
        return ((text, questions) for text, questions in texts.items() if questions)

    def _spare(self, records: Sequence[Fields], seed: int) -> list[tuple[str, str | Tokens]]:
        """Texts that may be distractors, and as they are written; one more than are needed, for the item's own."""
        most = self.distractors + self.before + 1
        if self.published:
            return [("", text) for text in islice(filled(stream_rows(self.other), self.encoder, TOKENS), most - 1)]
        # Taken from the end, few of the items that a limit leaves are among them.
        found = contexts(stream_rows(self.other)) if self.other else reversed(texts_of(records, seed))
        return [(text, f"{' '.join(text.split()[: self.words])}\n") for text in islice(found, most)]

    def _tokens(self, text: str) -> Tokens:
        """The first tokens of a text, as the published texts and questions have them."""
        return tuple(self.encoder.continuation(text)[:TOKENS].tolist())

    def _item(self, texts: Sequence[str | Tokens], questions: Sequence[Question], points: Sequence[int]) -> Item:
        """The texts, and the questions after each number of distractors, when the item's own text is there too."""
        named = {} if self.position == "begin" else {"position": self.position}
        asked = [
            replace(
                question,
                tokens=self._tokens(question.text) if self.published else (),
                after=self.before + 1 + point,
                conditions={"distractors": point, **named},
            )
            for point in points
            for question in questions
        ]
        return Item(tuple(texts), tuple(asked), use_chat_template=not self.published)

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """The published hit, and F1."""
        return judge(question, answer)

    def expect(
        self, rows: Sequence[Result], references: Mapping[str, Sequence[Result]], share_left: ShareLeft
    ) -> list[Result]:
        """The law of the method that was measured, where it drops slots by chance; a text counts as one write.

        It falls from the accuracy without distractors to that of ``nothing`` on the same questions, as the share of
        slots that are left. It has no interval. Where the text is not the first there is none.
        """
        if self.position != "begin":
            return []
        floors, measured = _by_distractors(references["nothing"]), _by_distractors(rows)
        law = []
        for later, row in measured.items():
            left = share_left(before=self.before, later=later)
            if left is not None and floors.keys() >= {0, later}:
                value = floors[later].value + left * (measured[0].value - floors[0].value)
                law.append(replace(row, metric=LAW, value=value, low=value, high=value, higher_is_better=None))
        return law


def _by_distractors(rows: Sequence[Result]) -> dict[int, Result]:
    """The accuracy by how many texts were written after the one that is asked about."""
    return {row.conditions["distractors"]: row for row in rows if row.metric == "accuracy"}
