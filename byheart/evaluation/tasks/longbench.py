"""LongBench's English tasks (arXiv 2308.14508): the context is written, the rest of the official prompt is asked."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from byheart.data.records import Fields, required
from byheart.errors import InputError, UnknownNameError, require_not_negative, require_one_of
from byheart.evaluation.metrics import longbench as longbench_scores
from byheart.evaluation.results import Result, average
from byheart.evaluation.task import Answer, Item, Part, Question, Task, Tokens, answers_of, shuffled
from byheart.protocol.grouping import group
from byheart.text.encoder import ChatEncoder

FORMS = ("turns", "prompt", "blocks")
BLOCK = 512
"""Tokens of what MemoryLLM writes at once."""
_LENGTHS = {"0-4k": 4000, "4-8k": 8000}
_LONGEST = "8k+"


class _Prompt(NamedTuple):
    """The official prompt before and after the context, with the tokens of an answer at most.

    Where a prompt ends in examples, the model continues them; as published, it is not put into the chat template.
    ``between`` stands after the context where the prompt is not cut there. ``paragraphs`` of its end are the question
    where MemoryLLM summarises. Of code, whitespace counts.
    """

    before: str
    after: str
    max_tokens: int
    use_chat_template: bool = True
    between: str = ""
    paragraphs: int = 0
    is_code: bool = False


@cache
def _prompts() -> dict[str, _Prompt]:
    """By data set; the slip "asconcisely" is the published one."""
    stored = json.loads(Path(__file__).with_name("longbench.json").read_text(encoding="utf-8"))
    return {subset: _Prompt(**prompt) for subset, prompt in stored.items()}


class LongBench(Task):
    """LongBench's own score of each English data set, answered from what a memory kept of the context.

    The official prompt is cut where the context ends: what stands before is written with it, the rest is the question.

    Args:
        words: of the context, the last so many; 0 is all.
        form: ``turns`` writes the context as a turn of a conversation and asks in the next one. ``prompt`` is the
            official prompt itself, as one turn, of which what comes before the question is written: ``full`` then sees
            what LongBench shows a model. ``blocks`` is MemoryLLM's: the bare prompt, whose last 512 tokens, less those
            of an answer, are continued, and which is written by 512 tokens before them; of summaries the last two
            paragraphs are continued.
        tokens: of the whole prompt, at most; 0 is all. As published, ``prompt`` leaves out its middle, ``blocks`` its
            beginning and as many more as an answer may have.
        by_length: a row for each of LongBench-E's three lengths; always for data sets that are called ``..._e``.
    """

    name = "longbench"
    encoder: ChatEncoder

    def __init__(self, *, words: int = 0, form: str = "turns", tokens: int = 0, by_length: bool = False) -> None:
        require_not_negative(words=words, tokens=tokens)
        require_one_of("form", form, FORMS)
        if tokens and form == "turns":
            raise ValueError("tokens are those of the whole prompt; give form=prompt or form=blocks too, or words")
        self.words, self.form, self.tokens, self.by_length = words, form, tokens, by_length

    def split(self, encoder: ChatEncoder) -> Sequence[Task]:
        """Itself, with the encoder that counts tokens."""
        task = copy.copy(self)
        task.encoder = encoder
        return (task,)

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per record."""
        for number, record in shuffled(records, seed):
            name, answers = str(required(record, "dataset", number)), answers_of(record, number)
            subset = name.removesuffix("_e")
            if subset not in _prompts():
                raise UnknownNameError(f"English LongBench data set (record {number})", subset, _prompts())
            prompt, context = _prompts()[subset], str(required(record, "context", number))
            # Of trec alone the classes are needed; other records have null.
            classes = tuple(required(record, "all_classes", number)) if subset == "trec" else ()
            asked = prompt.after
            if "{input}" in asked:
                asked = asked.replace("{input}", str(required(record, "input", number)))
            length, by_length = record.get("length"), self.by_length or name != subset
            question = Question(
                asked,
                answers,
                conditions={"subset": subset, **({"length": _length(record, number)} if by_length else {})},
                use_chat_template=prompt.use_chat_template,
                about={"classes": classes, **({} if length is None else {"length": length})},
                max_tokens=prompt.max_tokens,
                is_stripped=not prompt.is_code,
            )
            yield self._item(prompt.before + _last_words(context, self.words), question, prompt)

    def _item(self, text: str, question: Question, prompt: _Prompt) -> Item:
        """What is written and asked, in the form that was chosen; ``text`` is the prompt up to its context's end."""
        if self.form == "turns":
            return Item((text,), (question,), use_chat_template=prompt.use_chat_template)
        whole = f"{text}{prompt.between}{question.text}"
        texts, asked = self._turn(whole, question) if self.form == "prompt" else self._blocks(whole, prompt)
        is_turn = self.form == "prompt" and prompt.use_chat_template
        question = replace(question, tokens=asked, use_chat_template=is_turn)
        return Item(tuple(texts), (question,), use_chat_template=is_turn)

    def _turn(self, whole: str, question: Question) -> tuple[Sequence[Tokens], Tokens]:
        """The prompt as one turn, in tokens: all before its question, and that."""
        encoder, half = self.encoder, self.tokens // 2
        ids = self._counted(whole)
        if self.tokens and len(ids) > self.tokens:
            whole = encoder.decode(ids[:half]) + encoder.decode(ids[len(ids) - half :])
        is_turn = question.use_chat_template
        turn = encoder.question(whole, continues=False, use_chat_template=is_turn).tolist()
        end = encoder.encode("", question.text, encoder.template.answer if is_turn else "", first=False)
        # Something must be written, also where the question alone fills what is left of the prompt.
        place = max(1, len(turn) - len(end))
        return [tuple(turn[:place])], tuple(turn[place:])

    def _blocks(self, whole: str, prompt: _Prompt) -> tuple[Sequence[Tokens], Tokens]:
        """MemoryLLM's blocks, oldest first, and its question, without special tokens."""
        counted = self._counted(whole)
        if self.tokens and len(counted) > self.tokens:
            whole = self.encoder.decode(counted[-max(1, self.tokens - prompt.max_tokens) :])
        if prompt.paragraphs:
            parts = whole.split("\n\n")
            written, asked = ("\n\n".join(part) for part in (parts[: -prompt.paragraphs], parts[-prompt.paragraphs :]))
            ids, end = self._tokens(written.strip()), self._tokens(asked)
        else:
            every, kept = self._tokens(whole), BLOCK - prompt.max_tokens
            ids, end = every[:-kept], every[-kept:]
        starts = range(len(ids) % BLOCK - BLOCK, len(ids), BLOCK)
        return [block for start in starts if (block := ids[max(0, start) : start + BLOCK])], end

    def _counted(self, text: str) -> list[int]:
        """The tokens by which a prompt's length is measured."""
        return [*self.encoder.start, *self._tokens(text)]

    def _tokens(self, text: str) -> Tokens:
        return tuple(self.encoder.continuation(text).tolist())

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """By the scorer of its data set."""
        subset, classes = question.conditions["subset"], question.about["classes"]
        return {"score": longbench_scores.score(subset, answer.text, question.answers, classes=classes)}

    def official(self, question: Question, text: str) -> tuple[str, Fields]:
        """A line of what LongBench's ``eval.py`` reads, in ``pred`` or, by length, for its ``--e`` in ``pred_e``."""
        subset, classes = question.conditions["subset"], list(question.about["classes"])
        line = {"pred": text, "answers": list(question.answers), "all_classes": classes or None}
        line["length"] = question.about.get("length")
        return f"pred{'_e' * ('length' in question.conditions)}/{subset}.jsonl", line

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """The mean over data sets, where there are several; its bounds are the means of theirs, mostly too wide."""
        lengths = group(rows, lambda row: row.conditions.get("length"))
        return [_average(members, length) for length, members in lengths.items() if len(members) > 1]


def _average(rows: Sequence[Result], length: str | None) -> Result:
    """The mean over data sets, of all their texts or of those of one length."""
    n, clusters = sum(row.n for row in rows), sum(row.clusters for row in rows)
    kept = round(sum(row.bytes * row.n for row in rows) / n)
    seconds = sum(row.seconds * row.n for row in rows) / n
    conditions = {} if length is None else {"length": length}
    about = {"n": n, "clusters": clusters, "bytes": kept, "seconds": seconds, "conditions": conditions, "costs": {}}
    return average(rows, metric="average", **about)


def _length(record: Fields, number: int) -> str:
    """LongBench-E's name of a length in words. Raises InputError."""
    words = required(record, "length", number)
    if not isinstance(words, int):
        raise InputError(f"Record {number} has the length {words!r}; LongBench's are whole numbers of words.")
    return next((name for name, least in _LENGTHS.items() if words < least), _LONGEST)


def _last_words(text: str, words: int) -> str:
    """The end of a text, whitespace between its words as it is; all of it for 0."""
    begins = [found.start() for found in re.finditer(r"\S+", text)] if words else []
    return text[begins[-words] :] if len(begins) > words else text
