"""Whether an answer follows what was read, also where it contradicts what the model knew (FastMem, arXiv 2406.16069).

NaturalQuestions, NQ-Swap, NQ-Synth, HotpotQA and MemoTrap, in byheart's schema and in the files that the paper's code
reads. What is written is the context alone; of MemoTrap, the instruction before the first colon.
"""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from byheart.data.records import Fields, required
from byheart.errors import InputError
from byheart.evaluation.metrics.answers import span_hit, stated_answer
from byheart.evaluation.task import Answer, Item, Part, Question, Task, answers_of, shuffled

PREFIX = "The answer is:"
_FORMAT = f'Answer in the format "{PREFIX} ...".'
_SPAN = f"Extract from the context the span that best answers the question. {_FORMAT}"
_CANDIDATE = f"Choose the candidate that best fits the instruction. {_FORMAT}"


class Faithful(Task):
    """Accuracy and failures of answers from a text that may contradict what the model knew (FastMem).

    Args:
        context: repeat the context in the question, as published: the memory is then there beside the text. What
            context-aware decoding sets it against is the question without the context, asked of the plain model.
        swapped: of NQ-Swap's own files, ask about the text with the substituted answer, not the original one.
        published: count hits as the released code does, see ``answers.span_hit``.
        primed: every answer is made to begin with the words that the format asks for, which small models forget. No
            answer can fail then, so failures are not counted.
    """

    name = "faithful"
    max_tokens = 100
    higher_is_better: ClassVar = {"failures": False}
    sources: ClassVar[Fields] = {"nq-swap": "pminervini/NQ-Swap:dev"}

    def __init__(
        self, *, context: bool = False, swapped: bool = True, published: bool = False, primed: bool = False
    ) -> None:
        self.context, self.swapped, self.published, self.primed = context, swapped, published, primed

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per record, with its one question."""
        for number, record in shuffled(records, seed):
            traps = bool(record.get("classes") or record.get("choices"))
            text, repeated, lines, answers = (self._trap if traps else self._span)(record, number)
            asked, bare = "\n".join([lines[0], repeated, *lines[1:]]), "\n".join(lines)
            prefix = PREFIX if self.primed else ""
            question = Question(asked, answers, answer_prefix=prefix, unconditional=bare)
            yield Item((text,), (question if self.context else replace(question, text=bare, unconditional=""),))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """A hit where the stated answer holds a right one; a failure where none is stated."""
        stated = stated_answer(answer.text)
        hits = (span_hit(stated, right, published=self.published) for right in question.answers)
        failures = {} if self.primed else {"failures": float(stated is None)}
        return {"accuracy": float(any(hits)), **failures}

    def _span(self, record: Fields, number: int) -> tuple[str, str, Sequence[str], tuple[str, ...]]:
        """What is written, the line that repeats it, the question's lines without that one, and the right answers."""
        where, answer = self._fields(record)
        context = _text(required(record, where, number))
        named = "input" if record.get("input") and not record.get("question") else "question"
        question = _bare(str(required(record, named, number)))
        answers = answers_of({**record, "answers": required(record, answer, number)}, number)
        return context, f"Context: {context}", [_SPAN, f"Question: {question}?"], answers

    def _fields(self, record: Fields) -> tuple[str, str]:
        """The names of the context and the answer: byheart's, HotpotQA's, or NQ-Swap's two spellings."""
        if "sub_context" in record and self.swapped:
            return "sub_context", "sub_answer"
        if "org_context" in record:
            return "org_context", "org_answer"
        return "context", "answers" if "answers" in record else "answer"

    def _trap(self, record: Fields, number: int) -> tuple[str, str, Sequence[str], tuple[str, ...]]:
        """The same of MemoTrap: an instruction, a proverb that tempts to disobey it, and two ends."""
        prompt = str(required(record, "prompt" if "prompt" in record else "question", number))
        instruction, colon, sentence = prompt.partition(":")
        if not colon:
            raise InputError(f"Record {number} has no ':' between instruction and sentence: '{prompt}'.")
        candidates = _candidates(record, number)
        place = required(record, "answer_index" if "answer_index" in record else "label", number)
        if place not in range(len(candidates)):
            raise InputError(f"Record {number} has {len(candidates)} candidates, but its answer is number {place!r}.")
        offered = " or ".join(f'"{_bare(candidate)}"' for candidate in candidates)
        lines = [_CANDIDATE, f"Sentence: {sentence.strip()}", f"Candidates: {offered}"]
        return f"{instruction}.", f"Instruction: {instruction}", lines, (_bare(candidates[place]),)


def _text(context: Any) -> str:
    """A context as it is written; HotpotQA's own paragraphs on a line each, without their titles."""
    if isinstance(context, Mapping):
        return "\n".join(" ".join(sentences) for sentences in context["sentences"])
    if isinstance(context, list):
        return "\n".join(" ".join(sentences) for _, sentences in context)
    return str(context)


def _candidates(record: Fields, number: int) -> list[str]:
    """The two ends; MemoTrap's own file has the list as a text."""
    listed = required(record, "classes" if "classes" in record else "choices", number)
    try:
        return [str(end) for end in (ast.literal_eval(listed) if isinstance(listed, str) else listed)]
    except (ValueError, SyntaxError, TypeError) as error:
        raise InputError(f"Record {number} has no list in 'classes', but {listed!r}.") from error


def _bare(text: str) -> str:
    """Without whitespace around it or punctuation at its end."""
    return text.strip().rstrip(string.punctuation + " ")
