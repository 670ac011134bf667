"""Knowledge retention of MemoryLLM (arXiv 2402.04624): what is left of a text after others were written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from byheart.data.records import Fields
from byheart.errors import InputError
from byheart.evaluation.metrics import LAW
from byheart.evaluation.results import Result
from byheart.evaluation.task import Answer, Item, Part, Question, Task
from byheart.evaluation.tasks.short_answers import by_context, judge


class Retention(Task):
    """Hits of short answers after so many unrelated texts, and the law by which MemoryLLM forgets.

    A text is written, then ``distractors`` others; its questions are asked before the first, after every ``every`` of
    them, and after the last. The others are the same for all items, except for the item's own text.

    Args:
        words: of a distractor, at most; the published ones have 512 tokens.
        answer_words: of a question's first answer, at most.
        share: K/N, the share of a latent pool that each write replaces; above 0, rows of the metric ``law`` say what
            accuracy it leaves, from the accuracy without distractors.
        floor: the accuracy without any memory, to which the law falls.
    """

    name = "retention"

    def __init__(
        self,
        *,
        distractors: int = 20,
        every: int = 5,
        words: int = 350,
        answer_words: int = 3,
        share: float = 0.0,
        floor: float = 0.0,
    ) -> None:
        if min(distractors, every, words, answer_words) < 1:
            raise ValueError("distractors, every, words and answer_words must be 1 or more")
        if not (0 <= share <= 1 and 0 <= floor <= 1):
            raise ValueError(f"share and floor must be between 0 and 1; they are {share} and {floor}")
        self.distractors = distractors
        self.every = every
        self.words = words
        self.answer_words = answer_words
        self.share = share
        self.floor = floor

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per text that is asked about, with all of its questions at each point."""
        texts = by_context(records, seed, words=self.answer_words)
        if len(texts) <= self.distractors:
            raise InputError(f"{len(texts)} different texts give no {self.distractors} distractors; ask for fewer.")
        # Taken from the end, few of the items that a limit leaves are among them.
        spare = list(reversed(texts))[: self.distractors + 1]
        points = sorted({*range(0, self.distractors, self.every), self.distractors})
        for text, questions in texts.items():
            others = islice((other for other in spare if other != text), self.distractors)
            asked = [
                replace(question, after=1 + point, conditions={"distractors": point})
                for point in points
                for question in questions
            ]
            if asked:
                distractors = (" ".join(other.split()[: self.words]) for other in others)
                yield Item(tuple(f"{written}\n" for written in (text, *distractors)), tuple(asked))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """The published hit, and F1."""
        return judge(question, answer)

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """The law (1 - K/N)^n, begun at the accuracy without distractors; its interval comes from there alone.

        The paper counts steps from 1, the first being that without distractors.
        """
        measured = [row for row in rows if row.metric == "accuracy"] if self.share else []
        first = [row for row in measured if row.conditions["distractors"] == 0]
        return [self._law(start, row) for start in first for row in measured]

    def _law(self, start: Result, row: Result) -> Result:
        kept = (1 - self.share) ** row.conditions["distractors"]
        law = start.mapped(LAW, lambda accuracy: self.floor + (accuracy - self.floor) * kept)
        return replace(row, metric=LAW, value=law.value, low=law.low, high=law.high, higher_is_better=None)
