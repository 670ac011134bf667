"""The one loop that measures memories on tasks: write each item's texts, ask its questions, judge the answers.

Many items go side by side, and what several questions share is done once: a text is written once, its reading made
once, and all questions asked after it are rows of one batch. Every answer is kept in the run's folder as soon as its
batch is done, so a run that was interrupted goes on, see ``run_folder``.

It knows no task and no mechanism.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.backbone import Backbone
from byheart.budget import options_for, parse_bytes
from byheart.decoding import Decoding, generate, likelihoods
from byheart.errors import BudgetError, InputError, UsageError
from byheart.models import DEFAULT
from byheart.records import rows as records_of
from byheart.rows import Choice, Row, draws, interval
from byheart.run_folder import Outcome, RunFolder, append, digest_of, known
from byheart.session import Session, load, write_many
from byheart.streaming import texts_of
from byheart.task import Answer, Item, Part, Question, Task

DECODED = {each.name for each in fields(Decoding)}
Progress = Callable[[int, int], None]
# An item's number, a question's number in it, and the question.
_Asked: TypeAlias = tuple[int, int, Question]


@dataclass(frozen=True)
class Measured:
    """A memory as it was asked for: its session, how its answers are decoded, and the bytes it may keep; 0 is any."""

    said: str
    session: Session
    decoding: Mapping[str, Any]
    budget: int = 0

    @classmethod
    def of(cls, said: str, opened: Session, *, tokens: int = 0) -> Measured:
        """``NAME:key=value@64KB``: a key of ``Decoding`` is how to decode, others are the memory's options.

        Args:
            tokens: of the longest text; options that are not given are chosen so that it fits the bytes behind ``@``.
        """
        plain, budget = _budget(said)
        choice = Choice.of(plain, 0, 1)
        how = {key: value for key, value in choice.options.items() if key in DECODED}
        options = {key: value for key, value in choice.options.items() if key not in DECODED}
        if budget and tokens:
            options = {**options_for(choice.name, opened.backbone, budget, tokens), **options}
        made = load(opened.backbone, memory=choice.name, tokenizer=opened.tokenizer, **options)
        return cls(said, made, how, budget)

    def how(self, task: Task, max_tokens: int | None = None) -> Decoding:
        """How a task's answers are decoded, a question's own ``max_tokens`` before the task's. Raises UsageError."""
        if task.asks == "choices" and self.decoding:
            raise UsageError(
                f"{task.name} measures likelihoods: '{self.said}' has no {', '.join(self.decoding)} there."
            )
        return Decoding(**{"max_tokens": max_tokens or task.max_tokens, **self.decoding})


def _budget(said: str) -> tuple[str, int]:
    """A memory without its number of bytes, and that number; 0 where none is given. Raises UsageError."""
    plain, at, size = said.rpartition("@")
    return (plain, parse_bytes(size)) if at and not Path(said).exists() else (said, 0)


def evaluate(
    task: Task,
    data: str,
    memories: Sequence[str],
    *,
    model: str | Backbone = DEFAULT,
    limit: int = 0,
    skip: int = 0,
    seed: int = 0,
    batch: int = 8,
    out: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress = lambda done, total: None,
) -> list[Row]:
    """The numbers of each memory on one data set of a task.

    Args:
        data: a file, a folder, a data set of the hub, or the short name of one of the task's own.
        memories: ``NAME`` or ``NAME:key=value;key=value``, with options of the memory and of ``Decoding``; ``@64KB``
            behind it makes the memory as large as fits these bytes.
        limit: items at most; 0 is all.
        skip: leave out so many items before them, on which something was chosen.
        batch: items whose texts are written, and questions that are asked, at once; of the latter up to half as many
            more where few are left over.
        out: the run's folder; a run that is there goes on.

    Raises InputError, which counts items from 1 behind ``skip``; BudgetError where a memory keeps more than its bytes;
    UsageError, ModelError, and what making a memory raises.
    """
    if batch < 1 or min(limit, skip) < 0:
        raise UsageError(f"batch must be 1 or more, limit and skip 0 or more; they are {batch}, {limit} and {skip}.")
    opened = load(model, dtype=dtype, device=device)
    source = task.sources.get(data, data)
    records = list(records_of(source))
    items = list(islice(task.items(records, seed), skip, skip + limit if limit else None))
    if not items:
        raise InputError(f"'{data}' gives no item for {task.name}{f' after {skip}' * bool(skip)}.")
    ones = _measured(memories, opened, items)
    for one in ones:
        # What cannot be decoded is refused before anything is written.
        one.how(task)
    name, content = data if data in task.sources else Path(source).stem, digest_of(records)
    dtype = str(opened.backbone.dtype).removeprefix("torch.")
    folder = None
    if out is not None:
        folder = RunFolder(out, backbone=opened.backbone.fingerprint, dtype=dtype, seed=seed)
        name = folder.named(name, source, content)
    settings = {"options": vars(task), "limit": limit, "skip": skip, "records": content}
    steps = sum(len(item.texts) + len(item.questions) for item in items)
    rows: list[Row] = []
    for place, one in enumerate(ones):

        def tell(done: int, before: int = place * steps) -> None:
            progress(before + done, len(ones) * steps)

        file = _answers_of(one, task, name, folder) if folder else None
        made = _rows(task, name, one.said, run(task, items, one, batch=batch, file=file, progress=tell))
        rows += (found := made + task.summary(made))
        if folder is not None:
            measured = {"task": task.name, "dataset": name, "memory": one.said, **settings}
            measured["resolved"] = one.session.header.options
            folder.keep(found, measured, model=opened.backbone.source, dtype=dtype, seed=seed)
    return rows


def _answers_of(one: Measured, task: Task, dataset: str, folder: RunFolder) -> Path:
    """The file of a memory's answers."""
    header = one.session.header
    decides = (header.mechanism, sorted(header.options.items()), header.adapter, header.tokenizer, one.how(task))
    return folder.answers(task.name, dataset, one.said, *decides)


def _measured(memories: Sequence[str], opened: Session, items: Sequence[Item]) -> list[Measured]:
    """The memories, made before anything is asked of one."""
    sized = any(_budget(said)[1] for said in memories)
    begins = len(opened.tokenizer("").input_ids)
    tokens = begins + max(sum(len(opened.tokens(text)) for text in item.texts) for item in items) if sized else 0
    return [Measured.of(said, opened, tokens=tokens) for said in memories]


# ---- one memory ----


def run(
    task: Task,
    items: Sequence[Item],
    one: Measured,
    *,
    batch: int = 8,
    file: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """The outcome of every question; those that ``file`` already has are not asked again.

    Args:
        progress: called with how many texts are written and questions answered.
    """
    one.how(task)
    digests = [digest_of([sorted(vars(task).items()), item]) for item in items]
    found = known(file, items, digests) if file is not None else {}
    # Items of like lengths go side by side, so that less is padding; the longest first: what does not fit shows early.
    left = sorted((n for n in range(len(items)) if n not in found), key=lambda n: -_length(items[n]))
    outcomes = [outcome for n in sorted(found) for outcome in found[n]]
    done = sum(len(items[n].texts) + len(items[n].questions) for n in found)
    progress(done)

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        progress(done)

    for start in range(0, len(left), batch):
        chosen = {n: items[n] for n in left[start : start + batch]}
        made = list(_outcomes(task, chosen, digests, one, batch, advance))
        outcomes += made
        if file is not None:
            append(file, made)
    return sorted(outcomes, key=lambda outcome: (outcome.item, outcome.question))


def _length(item: Item) -> int:
    """Characters of its texts and its longest question."""
    return sum(map(len, item.texts)) + max((len(question.text) for question in item.questions), default=0)


def _outcomes(
    task: Task,
    items: Mapping[int, Item],
    digests: Sequence[str],
    one: Measured,
    batch: int,
    advance: Callable[[int], None],
) -> Iterator[Outcome]:
    """Write the items' texts side by side, and ask what is to be asked after each."""
    numbers, sessions = list(items), {n: _empty(one.session) for n in items}
    spent, longest = 0.0, max(len(item.texts) for item in items.values())
    asked = _by_writes(items)
    for written in range(longest + 1):
        if written:
            due = [n for n in numbers if len(items[n].texts) >= written]
            start = time.perf_counter()
            _write(one, {n: (sessions[n], items[n].texts[written - 1], items[n].framed) for n in due})
            spent += time.perf_counter() - start
            advance(len(due))
        for group in _groups(asked.get(written, []), batch):
            start = time.perf_counter()
            answers = _asked(task, one, sessions, group)
            each = (time.perf_counter() - start) / len(group)
            for (n, k, question), answer in zip(group, answers, strict=True):
                parts = {name: _part(value) for name, value in task.score(question, answer).items()}
                costs = (sessions[n].bytes, spent / len(numbers), each)
                yield Outcome(n, digests[n], k, question.at, answer.text, parts, *costs)
            advance(len(group))


def _by_writes(items: Mapping[int, Item]) -> dict[int, list[_Asked]]:
    """The questions by how many texts are written before them."""
    found: dict[int, list[_Asked]] = {}
    for n, item in items.items():
        for k, question in enumerate(item.questions):
            after = len(item.texts) if question.after is None else question.after
            found.setdefault(after, []).append((n, k, question))
    return found


def _write(one: Measured, due: Mapping[int, tuple[Session, str, bool]]) -> None:
    """Write each item's text. Raises InputError, naming the item, and BudgetError."""
    sessions, texts, framed = zip(*due.values(), strict=True)
    try:
        write_many(sessions, texts, framed=framed)
    except InputError as error:
        # Which of them it was is found by writing each alone.
        if len(due) == 1:
            raise InputError(f"'{one.said}' cannot be given a text of item {min(due) + 1}: {error}") from error
        for n, each in due.items():
            _write(one, {n: each})
    most = max(session.bytes for session in sessions)
    if one.budget and most > one.budget:
        raise BudgetError(one.said, one.budget, most)


def _asked(task: Task, one: Measured, sessions: Mapping[int, Session], group: Sequence[_Asked]) -> list[Answer]:
    """The answers to questions that are asked at once. Raises InputError, naming the item."""
    how = one.how(task, group[0][2].max_tokens)
    try:
        return _answers(task, [(sessions[n], question) for n, _, question in group], how)
    except InputError as error:
        # Which of them it was is found by asking each alone.
        if len(group) > 1:
            return [_asked(task, one, sessions, [each])[0] for each in group]
        raise InputError(
            f"'{one.said}' cannot answer question {group[0][1] + 1} of item {group[0][0] + 1}: {error}"
        ) from error


def _groups(asked: Sequence[_Asked], batch: int) -> Iterator[Sequence[_Asked]]:
    """Questions that are asked at once, whose answers are of one length at most: so many, the last half as many more.

    A step costs nearly as much for two rows as for ten, so the few that would be left over go with those before them.
    """
    by_tokens: dict[int | None, list[_Asked]] = {}
    for one in asked:
        by_tokens.setdefault(one[2].max_tokens, []).append(one)
    for group in by_tokens.values():
        cuts = [*range(batch, len(group) - batch // 2, batch), len(group)]
        yield from (group[first:last] for first, last in zip([0, *cuts], cuts, strict=False))


def _empty(session: Session) -> Session:
    twin = session.fork()
    twin.forget()
    return twin


def _answers(task: Task, asked: Sequence[tuple[Session, Question]], how: Decoding) -> list[Answer]:
    """The answers to questions of one backbone, all in one batch."""
    first = asked[0][0]
    prompts = [_prompt(session, question) for session, question in asked]
    readings = [session.reading_for(question.text) for session, question in asked]
    if task.asks == "words":
        others = [_prompt(session, question, alone=True) for session, question in asked]
        steps = generate(first.backbone, prompts, readings, others=others, decoding=how, stop_tokens=first.stop_tokens)
        texts = texts_of(steps, first.tokenizer, task.stop)
        return [Answer(f"{question.begins}{text}".strip()) for (_, question), text in zip(asked, texts, strict=True)]
    choices = [
        [session.tokens(each, framed=question.framed) for each in question.choices] for session, question in asked
    ]
    return [
        Answer(
            losses=tuple(each.loss for each in row),
            tokens=tuple(each.tokens for each in row),
            likeliest=tuple(each.likeliest for each in row),
        )
        for row in likelihoods(first.backbone, prompts, readings, choices)
    ]


def _prompt(session: Session, question: Question, *, alone: bool = False) -> Tensor:
    prompt = session.prompt(question.text, framed=question.framed, alone=alone)
    if not question.begins:
        return prompt
    return torch.cat([prompt, session.tokens(question.begins, framed=question.framed).to(prompt.device)])


def _part(value: float | Part) -> tuple[float, float]:
    return (value.total, value.weight) if isinstance(value, Part) else (float(value), 1.0)


# ---- rows ----


def _rows(task: Task, dataset: str, said: str, outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for each metric and each thing that it is the number of, in the order in which they came."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        for metric in dict.fromkeys(map(_metric, outcome.parts)):
            groups.setdefault((metric, json.dumps(outcome.at)), []).append(outcome)
    return [_row(task, dataset, said, metric, members) for (metric, _), members in groups.items()]


def _metric(part: str) -> str:
    """The metric that a part belongs to: what stands before a class."""
    return part.partition("/")[0]


def _row(task: Task, dataset: str, said: str, metric: str, members: Sequence[Outcome]) -> Row:
    """Questions of one item are no independent draws: whole items are drawn."""
    place = {number: n for n, number in enumerate(sorted({outcome.item for outcome in members}))}
    # Totals and weights of each item, by class.
    sums: dict[str, Tensor] = {}
    for outcome in members:
        for name in (name for name in outcome.parts if _metric(name) == metric):
            own = sums.setdefault(name, torch.zeros(2, len(place), dtype=torch.double))
            own[:, place[outcome.item]] += torch.tensor(outcome.parts[name], dtype=torch.double)
    drawn = draws(len(place))
    low, high = interval(_over_classes([own[:, drawn].sum(-1) for own in sums.values()]))
    return Row(
        task=task.name,
        dataset=dataset,
        memory=said,
        metric=metric,
        value=_over_classes([own.sum(-1) for own in sums.values()]).item(),
        low=low,
        high=high,
        n=len(members),
        bytes=round(sum(outcome.bytes for outcome in members) / len(members)),
        seconds=sum(outcome.write_seconds for outcome in members) / len(members),
        at={**members[0].at, "answer_seconds": sum(outcome.answer_seconds for outcome in members) / len(members)},
    )


def _over_classes(sums: Sequence[Float[Tensor, "2 ..."]]) -> Float[Tensor, "..."]:
    """The mean, over the classes that have any weight, of totals over weights."""
    totals, weights = torch.stack(list(sums), dim=1)
    there = weights > 0
    means: Tensor = torch.where(there, totals / weights, 0).sum(0) / there.sum(0)
    return means
