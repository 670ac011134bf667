"""Questions about a text, all of one text together: it is written once, and each is answered in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from byheart.data.records import Fields, required
from byheart.evaluation.metrics.answers import contains, exact_match, token_f1
from byheart.evaluation.task import Answer, Item, Part, Question, Task, answers_of, is_answered, shuffled


class Questions(Task):
    """Contained and exact short answers, and their token F1 (SQuAD, Rajpurkar et al. 2016, arXiv 1606.05250)."""

    name = "questions"
    sources: ClassVar[Fields] = {"squad": "rajpurkar/squad_v2:validation"}
    stop = ("\n",)

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per text, with all that is asked about it; what has no answer is left out."""
        texts: dict[str, list[Question]] = {}
        for number, record in shuffled(records, seed):
            if is_answered(record):
                asked = Question(str(required(record, "question", number)), answers_of(record, number))
                texts.setdefault(str(required(record, "context", number)), []).append(asked)
        for text, questions in texts.items():
            yield Item((text,), tuple(questions))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """By the best of the right answers."""
        return {
            "contains": max(contains(answer.text, right) for right in question.answers),
            "exact_match": max(exact_match(answer.text, right) for right in question.answers),
            "f1": max(token_f1(answer.text, right) for right in question.answers),
        }
