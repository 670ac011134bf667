"""Questions with short answers, as MemoryLLM picks and judges them: two tasks ask them (arXiv 2402.04624).

Published are first answers of at most 3 tokens (SQuAD) or 4 (NaturalQuestions); a task knows no tokens, so words count.
The published answer has 10 tokens, after a bare "Answer:". Chat models answer in sentences, so they are given more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from byheart.data.records import Fields, required
from byheart.errors import InputError
from byheart.evaluation.metrics.answers import best, exact_hit, token_f1
from byheart.evaluation.task import Answer, Question, answers_of, is_answered, shuffled


def by_context(records: Sequence[Fields], seed: int, *, words: int) -> dict[str, list[Question]]:
    """All texts in a random order, each with the questions whose first answer has so many words at most.

    Raises InputError.
    """
    found: dict[str, list[Question]] = {}
    for number, record in shuffled(records, seed):
        asked = found.setdefault(str(required(record, "context", number)), [])
        if is_answered(record):
            question = Question(str(required(record, "question", number)), answers_of(record, number))
            if len(question.answers[0].split()) <= words:
                asked.append(question)
    if not any(found.values()):
        raise InputError(
            f"None of {len(records)} records has a question with an answer of {words} words or fewer; "
            "give more answer_words, or other data."
        )
    return found


def judge(question: Question, answer: Answer) -> Mapping[str, float]:
    """Accuracy is the published hit: the first answer occurs in the text, case included. F1 is by the best."""
    return {
        "accuracy": float(exact_hit(answer.text, question.answers[0])),
        "f1": best(token_f1, answer.text, question.answers),
    }
