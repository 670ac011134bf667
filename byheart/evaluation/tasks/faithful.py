"""Whether an answer follows what was read, also where it contradicts what the model knew (FastMem, arXiv 2406.16069).

NaturalQuestions, NQ-Swap, NQ-Synth, HotpotQA and MemoTrap, in byheart's schema and in the files that the paper's code
reads. What is written is the context alone; of MemoTrap, the instruction before the first colon.
"""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from byheart.data.records import Fields, required
from byheart.errors import InputError, require_not_negative
from byheart.evaluation.metrics.answers import span_hit, stated_answer
from byheart.evaluation.task import Answer, Item, Part, Question, Task, answers_of, cut_text, shuffled
from byheart.text.encoder import ChatEncoder

PREFIX = "The answer is:"
_FORMAT = f'Answer in the format "{PREFIX} ...".'
_SPAN = f"Extract from the context the span that best answers the question. {_FORMAT}"
_CANDIDATE = f"Choose the candidate that best fits the instruction. {_FORMAT}"


@dataclass(frozen=True)
class _Case:
    """One record: its text, the line that repeats it, how to answer, what is asked, and the right answers."""

    text: str
    repeated: str
    instruction: str
    asked: str
    answers: tuple[str, ...]

    @property
    def bare(self) -> str:
        """The question without its text."""
        return f"{self.instruction}\n{self.asked}"

    @property
    def whole(self) -> str:
        """The question with its text."""
        return f"{self.instruction}\n{self.repeated}\n{self.asked}"

    @property
    def demonstration(self) -> str:
        """The question with its text, and how it is answered."""
        return f"{self.whole}\n{PREFIX} {self.answers[0]}\n\n"


class Faithful(Task):
    """Accuracy and failures of answers from a text that may contradict what the model knew (FastMem).

    Args:
        context: repeat the context in the question, as published: the memory is then there beside the text. What
            context-aware decoding sets it against is the question without the context, asked of the plain model.
        swapped: of NQ-Swap's own files, ask about the text with the substituted answer, not the original one.
        published: count hits as the released code does, see ``answers.span_hit``.
        primed: every answer is made to begin with the words that the format asks for, which small models forget. No
            answer can fail then, so failures are not counted.
        icl: write how to answer before the context, as the published ``nq_icl`` and ``nqswap_icl`` do; a question
            without its context then has nothing but itself.
        shots: answered questions of other records, each with its own context, before every question.
        instruction: how to answer, in other words than byheart's; those of the paper stand in its released code.
        first: of each data set, only so many records from the beginning, as published (4,000); 0 is all.
        doc_tokens: a context is cut after so many, as published (7,500); 0 is never.
    """

    name = "faithful"
    max_tokens = 100
    higher_is_better: ClassVar = {"failures": False}
    sources: ClassVar[Fields] = {
        "nq-swap": "pminervini/NQ-Swap:dev",
        "hotpotqa": "hotpotqa/hotpot_qa/distractor:validation",
    }

    def __init__(
        self,
        *,
        context: bool = False,
        swapped: bool = True,
        published: bool = False,
        primed: bool = False,
        icl: bool = False,
        shots: int = 0,
        instruction: str = "",
        first: int = 0,
        doc_tokens: int = 0,
    ) -> None:
        require_not_negative(shots=shots, first=first, doc_tokens=doc_tokens)
        self.context, self.swapped, self.published, self.primed = context, swapped, published, primed
        self.icl, self.shots, self.instruction = icl, shots, instruction
        self.first, self.doc_tokens = first, doc_tokens
        self._encoder: ChatEncoder | None = None

    def split(self, encoder: ChatEncoder) -> Sequence[Task]:
        """This task alone; the encoder counts the tokens of a context."""
        self._encoder = encoder
        return (self,)

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per record, with its one question."""
        numbered = shuffled(records, seed, first=self.first)
        if self.shots >= len(numbered) > 0:
            raise InputError(f"{len(numbered)} records give no {self.shots} others to show; give fewer shots.")
        for place, (number, record) in enumerate(numbered):
            case = self._case(record, number)
            others = [numbered[(place + n) % len(numbered)] for n in range(1, self.shots + 1)]
            shown = "".join(self._case(other, its_number).demonstration for its_number, other in others)
            written = f"{case.instruction}\n{case.repeated}" if self.icl else case.text
            prefix = PREFIX if self.primed else ""
            whole, bare = f"{shown}{case.whole}", f"{shown}{case.asked if self.icl else case.bare}"
            question = Question(whole, case.answers, answer_prefix=prefix, unconditional=bare, record=number)
            yield Item((written,), (question if self.context else replace(question, text=bare, unconditional=""),))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """A hit where the stated answer holds a right one; a failure where none is stated."""
        stated = stated_answer(answer.text)
        hits = (span_hit(stated, right, published=self.published) for right in question.answers)
        failures = {} if self.primed else {"failures": float(stated is None)}
        return {"accuracy": float(any(hits)), **failures}

    def _case(self, record: Fields, number: int) -> _Case:
        traps = bool(record.get("classes") or record.get("choices"))
        return (self._trap if traps else self._span)(record, number)

    def _span(self, record: Fields, number: int) -> _Case:
        """A question about a context."""
        where, answer = self._fields(record)
        context = cut_text(_text(required(record, where, number), number), self.doc_tokens, self._encoder)
        named = "input" if record.get("input") and not record.get("question") else "question"
        question = _bare(str(required(record, named, number)))
        answers = answers_of({**record, "answers": required(record, answer, number)}, number)
        how = self.instruction or _SPAN
        return _Case(context, f"Context: {context}", how, f"Question: {question}?", answers)

    def _fields(self, record: Fields) -> tuple[str, str]:
        """The names of the context and the answer: byheart's, HotpotQA's, or NQ-Swap's two spellings."""
        if "sub_context" in record and self.swapped:
            return "sub_context", "sub_answer"
        if "org_context" in record:
            return "org_context", "org_answer"
        return "context", "answers" if "answers" in record else "answer"

    def _trap(self, record: Fields, number: int) -> _Case:
        """One of MemoTrap: an instruction, a proverb that tempts to disobey it, and two ends."""
        prompt = str(required(record, "prompt" if "prompt" in record else "question", number))
        instruction, colon, sentence = prompt.partition(":")
        if not colon:
            raise InputError(f"Record {number} has no ':' between instruction and sentence: '{prompt}'.")
        candidates = _candidates(record, number)
        place = required(record, "answer_index" if "answer_index" in record else "label", number)
        if place not in range(len(candidates)):
            raise InputError(f"Record {number} has {len(candidates)} candidates, but its answer is number {place!r}.")
        offered = " or ".join(f'"{_bare(candidate)}"' for candidate in candidates)
        asked = f"Sentence: {sentence.strip()}\nCandidates: {offered}"
        repeated, how = f"Instruction: {instruction}", self.instruction or _CANDIDATE
        return _Case(f"{instruction}.", repeated, how, asked, (_bare(candidates[place]),))


def _text(context: Any, number: int) -> str:
    """A context as it is written; HotpotQA's own paragraphs on a line each, without their titles."""
    if isinstance(context, str):
        return context
    try:
        paragraphs = context["sentences"] if isinstance(context, Mapping) else [pair[1] for pair in context]
        return "\n".join(" ".join(sentences) for sentences in paragraphs)
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"Record {number} has a 'context' that is neither a text nor HotpotQA's paragraphs, each a title with a "
            f"list of sentences: {error!r}."
        ) from error


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
