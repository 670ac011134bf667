"""Questions about a text, or about several in one memory: each text is written once, and each question is answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from byheart.data.records import Fields, required
from byheart.errors import require_positive
from byheart.evaluation.metrics.answers import best, contains, exact_match, token_f1
from byheart.evaluation.task import Answer, Item, Part, Question, Task, answers_of, is_answered, shuffled

SHORT = "Answer with a few words from the text, without a sentence around them."


class Questions(Task):
    """Short answers by several metrics (SQuAD, Rajpurkar et al. 2016, arXiv 1606.05250).

    No one of these decides. ``contains`` is lenient with long answers, ``f1`` and ``exact_match`` with those that were
    trained to be short; ``gold_loss``, in nats per token of the first right answer given the memory, sees no style of
    answering but that of the right one, whatever the decoding.

    Args:
        instruction: how to answer, said after every question; ``short`` is one that asks for a few words, the same for
            all methods. None by default: results that were made without it stay comparable.
        texts: how many are written into one memory before anything is asked about any of them.
    """

    name = "questions"
    higher_is_better: ClassVar = {"answer_words": None, "gold_loss": False}
    sources: ClassVar[Fields] = {"squad": "rajpurkar/squad_v2:validation"}
    stop = ("\n",)
    unbounded = ("answer_words", "gold_loss")

    def __init__(self, *, instruction: str = "", texts: int = 1) -> None:
        require_positive(texts=texts)
        self.texts = texts
        # The words themselves are what a run's folder must say.
        self.instruction = SHORT if instruction == "short" else instruction

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One for each ``texts`` texts, with all that is asked about them; what has no answer is left out."""
        texts: dict[str, list[Question]] = {}
        for number, record in shuffled(records, seed):
            if is_answered(record):
                words, answers = str(required(record, "question", number)), answers_of(record, number)
                # An answer without a word has no likelihood.
                likely = tuple(answer for answer in answers if answer.strip())[:1]
                asked = Question(words, answers, choices=likely, instruction=self.instruction, record=number)
                texts.setdefault(str(required(record, "context", number)), []).append(asked)
        every = [*texts.items()]
        for start in range(0, len(every), self.texts):
            together = every[start : start + self.texts]
            yield Item(tuple(text for text, _ in together), tuple(asked for _, each in together for asked in each))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """By the best of the right answers; the loss is that of the first, so that all methods predict the same."""
        return {
            "contains": best(contains, answer.text, question.answers),
            "exact_match": best(exact_match, answer.text, question.answers),
            "f1": best(token_f1, answer.text, question.answers),
            "answer_words": float(len(answer.text.split())),
            **({"gold_loss": Part(answer.losses[0], answer.tokens[0])} if answer.losses else {}),
        }
