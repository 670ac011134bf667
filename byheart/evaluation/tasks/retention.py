"""Knowledge retention of MemoryLLM (arXiv 2402.04624): what is left of a text after others were written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from byheart.data.records import Fields
from byheart.errors import InputError
from byheart.evaluation.metrics import LAW
from byheart.evaluation.results import Result
from byheart.evaluation.task import Answer, Item, Part, Question, ShareLeft, Task
from byheart.evaluation.tasks.short_answers import by_context, judge


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
    """

    name = "retention"
    references = ("nothing",)

    def __init__(
        self,
        *,
        distractors: int = 20,
        every: int = 5,
        words: int = 350,
        answer_words: int = 3,
        before: int = 0,
    ) -> None:
        if min(distractors, every, words, answer_words) < 1:
            raise ValueError("distractors, every, words and answer_words must be 1 or more")
        if before < 0:
            raise ValueError(f"before must be 0 or more; it is {before}")
        self.distractors = distractors
        self.every = every
        self.words = words
        self.answer_words = answer_words
        self.before = before

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per text that is asked about, with all of its questions at each point."""
        texts = by_context(records, seed, words=self.answer_words)
        others_needed = self.distractors + self.before
        if len(texts) <= others_needed:
            raise InputError(f"{len(texts)} different texts give no {others_needed} distractors; ask for fewer.")
        # Taken from the end, few of the items that a limit leaves are among them.
        spare = list(reversed(texts))[: others_needed + 1]
        points = sorted({*range(0, self.distractors, self.every), self.distractors})
        for text, questions in texts.items():
            others = [f"{' '.join(other.split()[: self.words])}\n" for other in spare if other != text]
            later, first = others[: self.distractors], others[self.distractors : others_needed]
            asked = [
                replace(question, after=self.before + 1 + point, conditions={"distractors": point})
                for point in points
                for question in questions
            ]
            if asked:
                yield Item((*first, f"{text}\n", *later), tuple(asked))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """The published hit, and F1."""
        return judge(question, answer)

    def expect(
        self, rows: Sequence[Result], references: Mapping[str, Sequence[Result]], share_left: ShareLeft
    ) -> list[Result]:
        """The law of the method that was measured, where it drops slots by chance; a text counts as one write.

        It falls from the accuracy without distractors to that of ``nothing`` on the same questions, as the share of
        slots that are left. It has no interval.
        """
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
