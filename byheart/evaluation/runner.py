"""The loop of every measurement: write each item's texts, ask its questions, judge the answers.

Many items go side by side, and what several questions share is done once: a text is written once, its reading made
once, and all questions asked after it are rows of one batch. Every answer is kept as soon as its batch is done, so a
run that was interrupted goes on, see ``run_folder``.

It knows no task and no method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from byheart.errors import BudgetError, InputError
from byheart.evaluation.method_spec import Candidate
from byheart.evaluation.run_folder import Outcome, append, digest_of, known
from byheart.evaluation.task import Answer, Item, Part, Question, Task
from byheart.generation.decoding import Decoding
from byheart.generation.generate import Request
from byheart.generation.likelihood import likelihoods
from byheart.session.batch import answer_many, write_many
from byheart.session.session import Session

# An item's number, a question's number in it, and the question.
_Asked: TypeAlias = tuple[int, int, Question]


def run(
    task: Task,
    items: Sequence[Item],
    ones: Sequence[Candidate],
    *,
    batch: int = 8,
    files: Sequence[Path] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[Outcome]]:
    """The outcomes of every question, for each of ``ones``.

    Args:
        ones: the same memory, see ``alike``, decoded in different ways: each text is written once for all of them.
        files: where the outcomes of each are kept; those that are there are not asked again.
        progress: called with how many texts are written and questions answered, those of each of ``ones`` counted.
    """
    for one in ones:
        one.how(task)
    digests = [digest_of([sorted(task.chosen().items()), item]) for item in items]
    found = [known(file, items, digests) for file in files] or [{} for _ in ones]
    outcomes = [[outcome for n in sorted(own) for outcome in own[n]] for own in found]
    # By whom an item is still to be answered.
    lacking = {n: [k for k, own in enumerate(found) if n not in own] for n in range(len(items))}
    # Items of like lengths go side by side, so that less is padding; the longest first: what does not fit shows early.
    left = sorted((n for n, places in lacking.items() if places), key=lambda n: -_length(items[n]))
    done = sum(len(items[n].texts) + len(items[n].questions) for own in found for n in own)
    progress(done)

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        progress(done)

    for start in range(0, len(left), batch):
        chosen = {n: items[n] for n in left[start : start + batch]}
        made: list[list[Outcome]] = [[] for _ in ones]
        for place, outcome in _outcomes(task, chosen, digests, ones, lacking, batch, advance):
            made[place].append(outcome)
        for place, own in enumerate(made):
            outcomes[place] += own
            if files and own:
                append(files[place], own)
    return [sorted(own, key=lambda outcome: (outcome.item, outcome.question)) for own in outcomes]


def _length(item: Item) -> int:
    """Characters of its texts and its longest question."""
    return sum(map(len, item.texts)) + max((len(question.text) for question in item.questions), default=0)


def _outcomes(
    task: Task,
    items: Mapping[int, Item],
    digests: Sequence[str],
    ones: Sequence[Candidate],
    lacking: Mapping[int, Sequence[int]],
    batch: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, Outcome]]:
    """Write the items' texts side by side, and ask each of ``ones`` what it lacks after each."""
    numbers, sessions = list(items), {n: _empty(ones[0].session) for n in items}
    spent, longest = 0.0, max(len(item.texts) for item in items.values())
    asked = _by_writes(items)
    for written in range(longest + 1):
        if written:
            due = [n for n in numbers if len(items[n].texts) >= written]
            start = time.perf_counter()
            _write(ones[0], {n: (sessions[n], items[n].texts[written - 1], items[n].framed) for n in due})
            spent += time.perf_counter() - start
            advance(sum(len(lacking[n]) for n in due))
        for place, one in enumerate(ones):
            own = [each for each in asked.get(written, []) if place in lacking[each[0]]]
            # Each pays for its own readings, so that their times can be compared.
            views = {n: session.fork() for n, session in sessions.items()} if own else {}
            for group in _groups(own, batch):
                start = time.perf_counter()
                answers = _asked(task, one, views, group)
                each = (time.perf_counter() - start) / len(group)
                for (n, k, question), answer in zip(group, answers, strict=True):
                    parts = {name: _part(value) for name, value in task.score(question, answer).items()}
                    costs = (sessions[n].bytes, spent / len(numbers), each)
                    yield place, Outcome(n, digests[n], k, question.at, answer.text, parts, *costs)
                advance(len(group))


def _by_writes(items: Mapping[int, Item]) -> dict[int, list[_Asked]]:
    """The questions by how many texts are written before them."""
    found: dict[int, list[_Asked]] = {}
    for n, item in items.items():
        for k, question in enumerate(item.questions):
            after = len(item.texts) if question.after is None else question.after
            found.setdefault(after, []).append((n, k, question))
    return found


def _write(one: Candidate, due: Mapping[int, tuple[Session, str, bool]]) -> None:
    """Write each item's text. Raises InputError, naming the item, and BudgetError."""
    sessions, texts, framed = zip(*due.values(), strict=True)
    try:
        write_many(sessions, texts, use_chat_template=framed)
    except InputError as error:
        # Which of them it was is found by writing each alone.
        if len(due) == 1:
            raise InputError(f"'{one.said}' cannot be given a text of item {min(due) + 1}: {error}") from error
        for n, each in due.items():
            _write(one, {n: each})
    most = max(session.bytes for session in sessions)
    if one.budget and most > one.budget:
        raise BudgetError(one.said, one.budget, most)


def _asked(task: Task, one: Candidate, sessions: Mapping[int, Session], group: Sequence[_Asked]) -> list[Answer]:
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
        alone = [_prompt(session, question, alone=True) for session, question in asked]
        requests = [
            Request(prompt, reading, how, other, first.encoder.stop_tokens)
            for prompt, reading, other in zip(prompts, readings, alone, strict=True)
        ]
        texts = answer_many(first.backbone, first.encoder, requests, task.stop)
        return [Answer(f"{question.begins}{text}".strip()) for (_, question), text in zip(asked, texts, strict=True)]
    choices = [
        [session.encoder.continuation(each, use_chat_template=question.framed) for each in question.choices]
        for session, question in asked
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
    prompt = session.prompt(question.text, use_chat_template=question.framed, alone=alone)
    if not question.begins:
        return prompt
    return torch.cat(
        [prompt, session.encoder.continuation(question.begins, use_chat_template=question.framed).to(prompt.device)]
    )


def _part(value: float | Part) -> tuple[float, float]:
    return (value.total, value.weight) if isinstance(value, Part) else (float(value), 1.0)
