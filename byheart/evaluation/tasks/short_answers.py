"""Questions with short answers, as MemoryLLM picks and judges them: two tasks ask them (arXiv 2402.04624).

Published are first answers of at most 3 tokens (SQuAD) or 4 (NaturalQuestions), listed in files of places. The
published answer has 10 tokens, after a bare "Answer:". Chat models answer in sentences, so they are given more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from byheart.data.indices import read_indices
from byheart.data.records import Fields, required
from byheart.errors import InputError
from byheart.evaluation.metrics.answers import best, exact_hit, token_f1
from byheart.evaluation.task import Answer, Question, Tokens, answers_of, is_answered, shuffled
from byheart.text.encoder import ChatEncoder

_ANSWER_TOKENS = 10
_SQUAD_TOKENS, _NQ_TOKENS = 768, 513
_UNMARKED: Mapping[str, Any] = {"long_answer": {"start_token": -1}, "short_answers": ()}


class AnswerLimit(NamedTuple):
    """The most that a first answer may have, in which unit, and what counts it."""

    most: int
    unit: str
    count: Callable[[str], int]

    @classmethod
    def words(cls, most: int) -> AnswerLimit:
        """By words."""
        return cls(most, "words", lambda answer: len(answer.split()))

    @classmethod
    def tokens(cls, most: int, encoder: ChatEncoder) -> AnswerLimit:
        """By the model's tokens, as published."""
        return cls(most, "tokens", lambda answer: len(encoder.continuation(answer)))


def by_context(
    records: Sequence[Fields], seed: int, limit: AnswerLimit, *, published: bool = False
) -> dict[str, list[Question]]:
    """All texts in a random order, each with the questions whose first answer is short.

    Args:
        published: as for ``asked``.

    Raises InputError.
    """
    found: dict[str, list[Question]] = {}
    for number, record in shuffled(records, seed):
        questions = found.setdefault(str(required(record, "context", number)), [])
        if is_answered(record):
            question = asked(record, number, published=published)
            if limit.count(question.answers[0]) <= limit.most:
                questions.append(question)
    if not any(found.values()):
        raise InputError(
            f"None of {len(records)} records has a question with an answer of {limit.most} {limit.unit} or "
            f"fewer; give more answer_{limit.unit}, or other data."
        )
    return found


def listed(records: Sequence[Fields], indices: str, *, published: bool = False) -> Iterator[tuple[str, Question]]:
    """A text and its question for each place in a published list, in the list's order.

    Places count the records that have an answer, in the order of the data; of NaturalQuestions' own, those that the
    first annotator answered in words. Raises InputError.
    """
    counted = [(number, record) for number, record in enumerate(records, start=1) if _is_counted(record)]
    for n, place in enumerate(read_indices(indices), start=1):
        if place >= len(counted):
            raise InputError(
                f"'{indices}', number {n} is {place}, but the data have {len(counted):,} records with an answer, "
                "counted from 0; give the file that it was made for, whole."
            )
        number, record = counted[place]
        yield str(required(record, "context", number)), asked(record, number, published=published)


def asked(record: Fields, number: int, *, published: bool = False) -> Question:
    """A record's question.

    Args:
        published: in the published words, for the model to continue: NaturalQuestions' own have no question mark.
    """
    words, answers = str(required(record, "question", number)), answers_of(record, number)
    if not published:
        return Question(words, answers)
    mark = "?" if _is_from_nq(record) else ""
    return Question(f"Questions: {words}{mark} Answer:", answers, use_chat_template=False, max_tokens=_ANSWER_TOKENS)


def texts_of(records: Sequence[Fields], seed: int) -> list[str]:
    """All different texts in the random order of ``by_context``. Raises InputError."""
    return list(dict.fromkeys(str(required(record, "context", number)) for number, record in shuffled(records, seed)))


def contexts(records: Iterable[Fields]) -> Iterator[str]:
    """Different texts, in the order of the data; of NaturalQuestions' own no whole pages, which nobody marked."""
    seen = set()
    for number, record in enumerate(records, start=1):
        first = _first_annotation(record)
        if first is None or first["long_answer"]["start_token"] >= 0:
            text = str(required(record, "context", number))
            if text not in seen:
                seen.add(text)
                yield text


def filled(records: Iterable[Fields], encoder: ChatEncoder, tokens: int) -> Iterator[Tokens]:
    """Texts of so many tokens, as published: texts are joined until they have more, and then cut.

    SQuAD's are joined up to 768 tokens and NaturalQuestions' above 512: what is cut off is in no text.
    """
    found = iter(records)
    first = list(islice(found, 1))
    most = _NQ_TOKENS if any(map(_is_from_nq, first)) else _SQUAD_TOKENS
    joined = ""
    for text in contexts(chain(first, found)):
        joined = f"{joined} {text}" if joined else text
        ids = encoder.continuation(joined).tolist()
        if len(ids) >= most:
            yield tuple(ids[:tokens])
            joined = ""


def _is_from_nq(record: Fields) -> bool:
    """Whether a record is one of NaturalQuestions' own files."""
    return {"question_text", "annotations"} <= record.keys()


def _first_annotation(record: Fields) -> Mapping[str, Any] | None:
    """What the first annotator of NaturalQuestions' own marked; nothing where nobody was asked."""
    return next(iter(record["annotations"]), _UNMARKED) if _is_from_nq(record) else None


def _is_counted(record: Fields) -> bool:
    first = _first_annotation(record)
    return is_answered(record) and (first is None or bool(first["short_answers"]))


def judge(question: Question, answer: Answer) -> Mapping[str, float]:
    """Accuracy is the published hit: the first answer occurs in the text, case included. F1 is by the best."""
    return {
        "accuracy": float(exact_hit(answer.text, question.answers[0])),
        "f1": best(token_f1, answer.text, question.answers),
    }
