"""Integrity of MemoryLLM (arXiv 2402.04624): whether a memory still takes in the latest text after very many writes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from byheart.data.records import Fields
from byheart.evaluation.task import Answer, Item, Part, Question, Task
from byheart.evaluation.tasks.short_answers import AnswerLimit, by_context, judge


class Integrity(Task):
    """Hits of short answers about the latest text of a long-running memory, by how many were written into it.

    An item is one memory, into which ``writes`` texts go; a question about each is asked right after it. A sound memory
    answers as well in the last block as in the first. Where there are fewer texts, they are repeated in another order.

    Args:
        memories: how many there are, each with an order of its own; intervals are over them, so a few have none.
        block: writes whose answers make one row; the condition ``writes`` names the last.
        answer_words: of a question's first answer, at most.
    """

    name = "integrity"

    def __init__(self, *, writes: int = 100, block: int = 25, memories: int = 10, answer_words: int = 3) -> None:
        if min(writes, block, memories, answer_words) < 1:
            raise ValueError("writes, block, memories and answer_words must be 1 or more")
        self.writes = writes
        self.block = block
        self.memories = memories
        self.answer_words = answer_words

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One a memory, a question after each of its texts."""
        found = by_context(records, seed, AnswerLimit.words(self.answer_words))
        texts = [text for text, questions in found.items() if questions]
        for number in range(self.memories):
            draw = random.Random(f"{seed} {number}")
            order: list[str] = []
            while len(order) < self.writes:
                order += draw.sample(texts, len(texts))
            del order[self.writes :]
            asked = (draw.choice(found[text]) for text in order)
            yield Item(
                tuple(f"{text}\n" for text in order),
                tuple(
                    replace(question, after=count, conditions={"writes": self._block(count)})
                    for count, question in enumerate(asked, start=1)
                ),
            )

    def _block(self, count: int) -> int:
        """The last write of the block in which this one is."""
        return min(-(-count // self.block) * self.block, self.writes)

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """The published hit, and F1."""
        return judge(question, answer)
