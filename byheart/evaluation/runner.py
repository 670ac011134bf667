"""The one loop of every measurement: write each item's texts, ask its questions, judge the answers.

Many items go side by side, and what several questions share is done once: a text is written once, its reading made
once, and all questions asked after it are rows of one batch. Every answer is kept as soon as its batch is done, so an
interrupted run can be resumed, see ``run_folder``.

It knows no task and no method, and is the only module here that runs the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from byheart.errors import BudgetError, InputError
from byheart.evaluation.controls import batch_with_others
from byheart.evaluation.method_spec import Candidate
from byheart.evaluation.run_folder import Outcome, Parts, append, digest_of, known
from byheart.evaluation.targets import stream_losses, target_losses as target_losses
from byheart.evaluation.task import Answer, Item, Part, Question, Task, Tokens
from byheart.generation.decoding import Decoding
from byheart.generation.likelihood import likelihoods
from byheart.model.reading import Reading
from byheart.protocol.episode import Episode, collate
from byheart.protocol.grouping import group
from byheart.protocol.state import Written
from byheart.session.batch import answer_many, write_many
from byheart.session.session import Session


class Asked(NamedTuple):
    """A question with the number of its item, and its own number there."""

    item: int
    number: int
    question: Question


class Told(NamedTuple):
    """An answer, the bytes of what was read before its question, and when its words began and ended, if it has any."""

    answer: Answer
    reading_bytes: int
    ended: float | None = None
    begun: float | None = None


def run(
    task: Task,
    items: Sequence[Item],
    candidates: Sequence[Candidate],
    *,
    batch: int = 8,
    files: Sequence[Path] = (),
    advance: Callable[[int], None] = lambda steps: None,
    seen: Callable[[int, Sequence[Outcome]], None] = lambda place, outcomes: None,
) -> list[list[Outcome]]:
    """The outcomes of every question, for each candidate.

    Args:
        candidates: one method, see ``group_by_state``, decoded in different ways, controls among them: each text is
            written once for all.
        files: where the outcomes of each are kept; questions whose outcomes are there are not asked again.
        advance: called with how many more texts are written and questions answered, counted for each candidate.
        seen: called with the place of a candidate and its outcomes, those that are known and then those of each batch.
    """
    for candidate in candidates:
        candidate.decoding_for(task)
    plain = [digest_of([sorted(task.chosen().items()), item]) for item in items]
    is_paired = bool(items) and any(candidate.control == "other" for candidate in candidates)
    batches, others = batch_with_others(task, items, batch) if is_paired else ([], {})
    # An answer after another text belongs to both items.
    paired = [digest_of([plain[n], plain[others[n]]]) for n in range(len(items))] if is_paired else plain
    digests = [paired if candidate.control == "other" else plain for candidate in candidates]
    found = [known(file, items, digests[k]) for k, file in enumerate(files)] or [{} for _ in candidates]
    outcomes = [[outcome for n in sorted(by_item) for outcome in by_item[n]] for by_item in found]
    # For which candidates an item is still to be answered.
    lacking = {n: [k for k, by_item in enumerate(found) if n not in by_item] for n in range(len(items))}
    for place, resumed in enumerate(outcomes):
        seen(place, resumed)
    advance(sum(items[n].steps for by_item in found for n in by_item))
    left = {n: items[n] for n, places in lacking.items() if places}
    if not is_paired:
        batches = task.batches(left, batch) if left else []
    for numbers in (numbers for numbers in batches if left.keys() & set(numbers)):
        sheet = _Batch(task, {n: items[n] for n in numbers}, candidates, lacking, digests, others, batch)
        new: list[list[Outcome]] = [[] for _ in candidates]
        for place, outcome in sheet.outcomes(advance):
            new[place].append(outcome)
        for place, added in enumerate(new):
            outcomes[place] += added
            seen(place, added)
            if files and added:
                append(files[place], added)
    return [sorted(own, key=lambda outcome: (outcome.item, outcome.question)) for own in outcomes]


@dataclass(frozen=True)
class _Batch:
    """Items by number that are measured side by side, and for which candidates each of them still is.

    ``digests`` are each candidate's; ``others`` says whose texts stand in for an item's own; ``size`` is how many
    questions are asked at once.
    """

    task: Task
    items: Mapping[int, Item]
    candidates: Sequence[Candidate]
    lacking: Mapping[int, Sequence[int]]
    digests: Sequence[Sequence[str]]
    others: Mapping[int, int]
    size: int

    def outcomes(self, advance: Callable[[int], None]) -> Iterator[tuple[int, Outcome]]:
        """Write the texts side by side, and after each ask every candidate what it lacks."""
        first = self.candidates[0]
        sessions = {n: _empty(first.session_for(item)) for n, item in self.items.items()}
        spent, asked = 0.0, self._asked_after()
        is_read = any(self.candidates[place].control != "nothing" for n in self.items for place in self.lacking[n])
        for written in range(max(len(item.texts) for item in self.items.values()) + 1):
            if written:
                due = {n: item for n, item in self.items.items() if len(item.texts) >= written}
                start = time.perf_counter()
                # Memories of several sizes have a method of their own each.
                for members in group(due, lambda n: id(sessions[n].method)).values() if is_read else ():
                    _write(first, {n: (sessions[n], due[n], due[n].texts[written - 1]) for n in members})
                if first.session.backbone.device.type == "cuda":
                    torch.cuda.synchronize(first.session.backbone.device)
                spent += time.perf_counter() - start
                advance(sum(len(self.lacking[n]) for n in due))
            for place, _ in enumerate(self.candidates):
                lacking = [question for question in asked.get(written, []) if place in self.lacking[question.item]]
                for outcomes in self._ask(place, sessions, lacking, spent / len(self.items)) if lacking else ():
                    yield from ((place, outcome) for outcome in outcomes)
                    advance(len(outcomes))

    def _asked_after(self) -> dict[int, list[Asked]]:
        """The questions by how many texts are written before them."""
        asked = [Asked(n, k, question) for n, item in self.items.items() for k, question in enumerate(item.questions)]
        written = {n: len(item.texts) for n, item in self.items.items()}
        return group(asked, lambda each: written[each.item] if each.question.after is None else each.question.after)

    def _ask(
        self, place: int, sessions: Mapping[int, Session], asked: Sequence[Asked], write_seconds: float
    ) -> Iterator[list[Outcome]]:
        """The outcomes of questions that are asked of one candidate, group by group."""
        task, candidate = self.task, self.candidates[place]
        views = self._views(candidate, sessions)
        others = dict(zip(views, [*list(views.values())[1:], *list(views.values())[:1]], strict=True))
        tokens = {n: sum(entry.tokens for entry in view.header.written) for n, view in views.items()}
        seconds_of_writing = 0.0 if candidate.control == "nothing" else write_seconds
        costs = {n: (view.bytes, tokens[n], seconds_of_writing) for n, view in views.items()}
        for members in group_questions(asked, self.size):
            start = time.perf_counter()
            answers = _answer(task, candidate, views, members)
            # How likely a right answer is, which some tasks also ask, is no part of answering.
            seconds = ((answers[0].ended or time.perf_counter()) - start) / len(members)
            controls = _answer(task, candidate, others, members) if task.control else [None] * len(members)
            outcomes = []
            for (n, k, question), told, control in zip(members, answers, controls, strict=True):
                parts = [parts_of(task, question, each.answer) if each else {} for each in (told, control)]
                about = (n, self.digests[place][n], k, question.conditions, told.answer.text)
                begun = None if told.begun is None else (told.begun - start) / len(members)
                reading = (told.reading_bytes, _reread(views[n], question), begun)
                outcomes.append(Outcome(*about, parts[0], *costs[n], seconds, parts[1], *reading))
            yield outcomes

    def _views(self, candidate: Candidate, sessions: Mapping[int, Session]) -> dict[int, Session]:
        """By item the session that is asked: its own, an empty one, or that of another item.

        Each candidate pays for its own readings, so that their times can be compared.
        """
        if candidate.control == "nothing":
            return dict.fromkeys(sessions, _empty(candidate.session))
        if candidate.control == "other":
            return {n: sessions[self.others[n]].fork() for n in sessions}
        return {n: session.fork() for n, session in sessions.items()}


def parts_of(task: Task, question: Question, answer: Answer) -> Parts:
    """How good an answer is, by metric, as it is kept."""
    scores = task.score(question, answer).items()
    parts = {name: score if isinstance(score, Part) else Part(float(score)) for name, score in scores}
    return {name: (part.total, part.weight) for name, part in parts.items()}


def group_questions(asked: Sequence[Asked], size: int) -> Iterator[Sequence[Asked]]:
    """Questions that are asked at once: so many, the last half as many more.

    A step costs nearly as much for two rows as for ten, so the few that would be left over go with those before them.
    Those of one group have answers of one length at most, or targets of one kind.
    """
    kinds = group(asked, lambda each: each.number if each.question.target else each.question.max_tokens)
    for members in kinds.values():
        cuts = [*range(size, len(members) - size // 2, size), len(members)]
        yield from (members[first:last] for first, last in zip([0, *cuts], cuts, strict=False))


# ---- writing ----


def _empty(session: Session) -> Session:
    twin = session.fork()
    twin.forget()
    return twin


def _write(candidate: Candidate, due: Mapping[int, tuple[Session, Item, str | Tokens]]) -> None:
    """Write a text of each item. Raises InputError, naming the item, and BudgetError."""
    sessions = [session for session, _, _ in due.values()]
    try:
        _write_all(sessions, [item for _, item, _ in due.values()], [text for _, _, text in due.values()])
    except InputError as error:
        # Which of them it was is found by writing each alone.
        if len(due) == 1:
            raise InputError(f"'{candidate.spec}' cannot be given a text of item {min(due) + 1}: {error}") from error
        for n, alone in due.items():
            _write(candidate, {n: alone})
    most = max(session.bytes for session in sessions)
    if candidate.budget and most > candidate.budget:
        raise BudgetError(candidate.spec, candidate.budget, most)


def _write_all(sessions: Sequence[Session], items: Sequence[Item], texts: Sequence[str | Tokens]) -> None:
    """Strings through the encoder, tokens as they are, each text at once; a task gives either."""
    if strings := [text for text in texts if isinstance(text, str)]:
        write_many(sessions, strings, use_chat_template=[item.use_chat_template for item in items])
        return
    tokens = [
        torch.tensor([text], device=session.backbone.device) for session, text in zip(sessions, texts, strict=True)
    ]
    for session, row in zip(sessions, tokens, strict=True):
        session.require_room(row)
    with torch.no_grad():
        states = sessions[0].method.write_many([session.state for session in sessions], tokens)
    for session, state, text in zip(sessions, states, texts, strict=True):
        session.acknowledge(state, Written.now("tokens", tokens=len(text), characters=0))


# ---- asking ----


def _answer(task: Task, candidate: Candidate, sessions: Mapping[int, Session], asked: Sequence[Asked]) -> list[Told]:
    """The answers to questions that are asked at once. Raises InputError, naming the item."""
    pairs = [(sessions[n], question) for n, _, question in asked]
    try:
        if task.asks == "words":
            return _generate(task, pairs, candidate.decoding_for(task, asked[0].question.max_tokens))
        return {"choices": choose, "target": _predict, "stream": _stream}[task.asks](pairs)
    except InputError as error:
        # Which of them it was is found by asking each alone.
        if len(asked) > 1:
            return [_answer(task, candidate, sessions, [alone])[0] for alone in asked]
        n, k, _ = asked[0]
        raise InputError(f"'{candidate.spec}' cannot answer question {k + 1} of item {n + 1}: {error}") from error


def _generate(task: Task, asked: Sequence[tuple[Session, Question]], decoding: Decoding) -> list[Told]:
    """Words, and how likely the choices are that some questions have beside them, however the words are decoded."""
    first, begun = asked[0][0], list[float]()
    requests = [
        session.request(each.prompt, decoding, unconditional=each.unconditional, search=each.text, **_form(each))
        for session, each in asked
    ]
    texts = answer_many(
        first.backbone, first.encoder, requests, task.stop, begun=lambda: begun.append(time.perf_counter())
    )
    ended = time.perf_counter()
    likely = iter(choose([pair for pair in asked if pair[1].choices]))
    answers = [
        replace(next(likely).answer if each.choices else Answer(), text=_words(each, f"{each.answer_prefix}{text}"))
        for (_, each), text in zip(asked, texts, strict=True)
    ]
    return [Told(answer, each.reading.bytes, ended, *begun) for answer, each in zip(answers, requests, strict=True)]


def _words(question: Question, text: str) -> str:
    return text.strip() if question.is_stripped else text


def choose(asked: Sequence[tuple[Session, Question]]) -> list[Told]:
    """How likely each choice of each question is, and which is the likeliest."""
    if not asked:
        return []
    backbone, device = asked[0][0].backbone, asked[0][0].backbone.device
    prompts = [session.prompt(each.prompt, **_form(each)) for session, each in asked]
    readings = [session.reading_for(question.text) for session, question in asked]
    choices = [_choices(session, question) for session, question in asked]
    found = likelihoods(backbone, prompts, readings, choices)
    rows = [zip(*((each.loss, each.tokens, each.likeliest) for each in row), strict=True) for row in found]
    priors = [
        tuple(each.loss for each in likelihoods(backbone, [torch.tensor(prior, device=device)], [Reading()], [row])[0])
        if prior
        else ()
        for prior, row in zip((question.prior for _, question in asked), choices, strict=True)
    ]
    return [
        Told(replace(Answer("", *row), prior_losses=prior), reading.bytes)
        for row, prior, reading in zip(rows, priors, readings, strict=True)
    ]


def _choices(session: Session, question: Question) -> list[Tensor]:
    if question.choice_tokens:
        return [torch.tensor(tokens) for tokens in question.choice_tokens]
    form = {"use_chat_template": question.use_chat_template}
    return [session.encoder.continuation(choice, **form) for choice in question.choices]


def _form(question: Question) -> dict[str, Any]:
    form = {"use_chat_template": question.use_chat_template, "answer_prefix": question.answer_prefix}
    return {**form, "tokens": question.tokens} if question.tokens else form


def _predict(asked: Sequence[tuple[Session, Question]]) -> list[Told]:
    """The losses of the questions' targets, each after its session's memory."""
    batch = collate([Episode((), torch.tensor(q.target), q.target_start) for _, q in asked])
    readings = [session.reading for session, _ in asked]
    losses = target_losses(asked[0][0].backbone, readings, batch).tolist()
    rows = zip(losses, batch.labels.sum(1).tolist(), readings, strict=True)
    return [Told(Answer(losses=(loss,), tokens=(count,)), reading.bytes) for loss, count, reading in rows]


def _stream(asked: Sequence[tuple[Session, Question]]) -> list[Told]:
    """The losses of the questions' targets, each predicted while it streams into its session's memory."""
    first, targets = asked[0][0], [torch.tensor(question.target) for _, question in asked]
    found = stream_losses(first.method, [session.state for session, _ in asked], targets)
    readings = [session.reading.bytes for session, _ in asked]
    return [
        Told(Answer(losses=(loss,), tokens=(count,)), kept) for (loss, count), kept in zip(found, readings, strict=True)
    ]


def _reread(session: Session, question: Question) -> float:
    """Tokens of the text that were run again for a question; a target is no question to select by."""
    return session.method.reread_tokens(session.state) if question.target else session.reread_tokens(question.text)
