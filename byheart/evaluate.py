"""The one loop that measures memories on tasks: write each item's texts, ask its questions, judge the answers.

Many items go side by side, and what several questions share is done once: a text is written once, its reading made
once, and all questions asked after it are rows of one batch. Every answer is kept in the run's folder as soon as its
batch is done, so a run that was interrupted goes on:

    OUT/run.json                             what decides the answers; a run with other settings is refused
    OUT/answers/TASK/DATASET/MEMORY.jsonl    one line a question
    OUT/rows.json                            the numbers, see ``rows.Row``

It knows no task and no mechanism.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch

from byheart.backbone import Backbone
from byheart.budget import options_for, parse_bytes
from byheart.decoding import Decoding, generate, likelihoods
from byheart.errors import InputError, UsageError
from byheart.models import DEFAULT
from byheart.records import rows as records_of
from byheart.rows import Choice, Row, draws, interval, load as load_rows, save, versions
from byheart.session import Session, load, write_many
from byheart.streaming import text_of
from byheart.task import Answer, Item, Part, Question, Task

_FORMAT = 1
DECODED = {each.name for each in fields(Decoding)}
Progress = Callable[[int, int], None]
_Asked: TypeAlias = tuple[int, int, Question]


@dataclass(frozen=True)
class Outcome:
    """One question of one item: the words that answered it, its share of each metric, and what the item cost.

    ``digest`` tells one item from another of the same number.
    """

    item: int
    digest: str
    question: int
    at: Mapping[str, Any]
    text: str
    parts: Mapping[str, tuple[float, float]]
    bytes: int
    write_seconds: float
    answer_seconds: float


@dataclass(frozen=True)
class Measured:
    """A memory as it was asked for: its session, and how its answers are decoded."""

    said: str
    session: Session
    decoding: Mapping[str, Any]

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
        return cls(said, made, how)

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
        batch: items whose texts are written, and questions that are asked, at once.
        out: the run's folder; a run that is there goes on.

    Raises InputError, UsageError, ModelError, and what making a memory raises.
    """
    if batch < 1 or min(limit, skip) < 0:
        raise UsageError(f"batch must be 1 or more, limit and skip 0 or more; they are {batch}, {limit} and {skip}.")
    opened = load(model, dtype=dtype, device=device)
    source = task.sources.get(data, data)
    items = list(islice(task.items(list(records_of(source)), seed), skip, skip + limit if limit else None))
    if not items:
        raise InputError(f"'{data}' gives no item for {task.name}{f' after {skip}' * bool(skip)}.")
    name = data if data in task.sources else Path(source).stem
    folder = _opened(out, task, opened, seed) if out is not None else None
    sized = any(_budget(said)[1] for said in memories)
    tokens = max(sum(len(opened.tokens(text)) for text in item.texts) for item in items) if sized else 0
    rows: list[Row] = []
    for place, said in enumerate(memories):
        one = Measured.of(said, opened, tokens=tokens)
        file = folder / "answers" / task.name / name / f"{_slug(said)}.jsonl" if folder else None

        def tell(done: int, before: int = place * len(items)) -> None:
            progress(before + done, len(memories) * len(items))

        outcomes = run(task, items, one, batch=batch, file=file, progress=tell)
        made = _rows(task, name, said, outcomes)
        rows += made + task.summary(made)
    if folder is not None:
        _keep(folder, rows, about={"model": opened.backbone.source, "limit": limit, "skip": skip, "seed": seed})
    return rows


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
    """The outcome of every question; those that ``file`` already has are not asked again."""
    # What cannot be decoded is refused before anything is written.
    one.how(task)
    known = _known(file, task, items) if file is not None else {}
    left = [n for n in range(len(items)) if n not in known]
    outcomes = [outcome for n in sorted(known) for outcome in known[n]]
    progress(len(known))
    for start in range(0, len(left), batch):
        chosen = left[start : start + batch]
        found = list(_outcomes(task, {n: items[n] for n in chosen}, one, batch))
        outcomes += found
        if file is not None:
            _append(file, found)
        progress(len(known) + start + len(chosen))
    return sorted(outcomes, key=lambda outcome: (outcome.item, outcome.question))


def _outcomes(task: Task, items: Mapping[int, Item], one: Measured, batch: int) -> Iterator[Outcome]:
    """Write the items' texts side by side, and ask what is to be asked after each."""
    numbers, sessions = list(items), {n: _empty(one.session) for n in items}
    spent, longest = 0.0, max(len(item.texts) for item in items.values())
    for written in range(longest + 1):
        if written:
            due = [n for n in numbers if len(items[n].texts) >= written]
            start = time.perf_counter()
            write_many([sessions[n] for n in due], [items[n].texts[written - 1] for n in due])
            spent += time.perf_counter() - start
        asked = [
            (n, k, question)
            for n in numbers
            for k, question in enumerate(items[n].questions)
            if (len(items[n].texts) if question.after is None else question.after) == written
        ]
        for group in _groups(asked, batch):
            start = time.perf_counter()
            how = one.how(task, group[0][2].max_tokens)
            answers = _answers(task, [(sessions[n], question) for n, _, question in group], how)
            each = (time.perf_counter() - start) / len(group)
            for (n, k, question), answer in zip(group, answers, strict=True):
                parts = {name: _part(value) for name, value in task.score(question, answer).items()}
                costs = (sessions[n].bytes, spent / len(numbers), each)
                yield Outcome(n, _digest(task, items[n]), k, question.at, answer.text, parts, *costs)


def _groups(asked: Sequence[_Asked], batch: int) -> Iterator[Sequence[_Asked]]:
    """Questions that are asked at once: so many at most, whose answers are of one length at most."""
    by_tokens: dict[int | None, list[_Asked]] = {}
    for one in asked:
        by_tokens.setdefault(one[2].max_tokens, []).append(one)
    for group in by_tokens.values():
        yield from (group[first : first + batch] for first in range(0, len(group), batch))


def _empty(session: Session) -> Session:
    twin = session.fork()
    twin.forget()
    return twin


def _answers(task: Task, asked: Sequence[tuple[Session, Question]], how: Decoding) -> list[Answer]:
    """The answers to questions of one backbone, all in one batch."""
    first = asked[0][0]
    prompts = [session.prompt(question.text, framed=question.framed) for session, question in asked]
    readings = [session.reading_for(question.text) for session, question in asked]
    if task.asks == "words":
        steps = generate(first.backbone, prompts, readings, decoding=how, stop_tokens=first.stop_tokens)
        rows = zip(*steps, strict=True)
        return [Answer("".join(text_of(iter(row), first.tokenizer, task.stop)).strip()) for row in rows]
    choices = [[session.tokens(choice) for choice in question.choices] for session, question in asked]
    return [
        Answer(
            losses=tuple(each.loss for each in row),
            tokens=tuple(each.tokens for each in row),
            likeliest=tuple(each.likeliest for each in row),
        )
        for row in likelihoods(first.backbone, prompts, readings, choices)
    ]


def _part(value: float | Part) -> tuple[float, float]:
    return (value.total, value.weight) if isinstance(value, Part) else (float(value), 1.0)


# ---- rows ----


def _rows(task: Task, dataset: str, said: str, outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for each metric and each thing that it is the number of, in the order in which they came."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        for metric in outcome.parts:
            groups.setdefault((metric, json.dumps(outcome.at)), []).append(outcome)
    return [_row(task, dataset, said, metric, members) for (metric, _), members in groups.items()]


def _row(task: Task, dataset: str, said: str, metric: str, members: Sequence[Outcome]) -> Row:
    """Questions of one item are no independent draws: whole items are drawn."""
    numbers = sorted({outcome.item for outcome in members})
    place = {number: n for n, number in enumerate(numbers)}
    totals, weights = torch.zeros(len(numbers), dtype=torch.double), torch.zeros(len(numbers), dtype=torch.double)
    for outcome in members:
        total, weight = outcome.parts[metric]
        totals[place[outcome.item]] += total
        weights[place[outcome.item]] += weight
    drawn = draws(len(numbers))
    low, high = interval(totals[drawn].sum(-1) / weights[drawn].sum(-1))
    return Row(
        task=task.name,
        dataset=dataset,
        memory=said,
        metric=metric,
        value=(totals.sum() / weights.sum()).item(),
        low=low,
        high=high,
        n=len(members),
        bytes=round(sum(outcome.bytes for outcome in members) / len(members)),
        seconds=sum(outcome.write_seconds for outcome in members) / len(members),
        at={**members[0].at, "answer_seconds": sum(outcome.answer_seconds for outcome in members) / len(members)},
    )


# ---- the run's folder ----


def _opened(out: str | Path, task: Task, opened: Session, seed: int) -> Path:
    """The run's folder. Raises UsageError where it holds another run."""
    folder, file = Path(out), Path(out) / "run.json"
    about = {
        "format": _FORMAT,
        "byheart": versions()["byheart"],
        "backbone": opened.backbone.fingerprint,
        "dtype": str(opened.backbone.dtype).removeprefix("torch."),
        "seed": seed,
    }
    if file.exists():
        stored = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name, value in about.items() if stored.get(name) != value]
        if changed:
            told = ", ".join(f"{name} {stored.get(name)} (now {about[name]})" for name in changed)
            raise UsageError(f"'{folder}' holds a run of other settings: {told}. Give another --out, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return folder


def _slug(said: str) -> str:
    """A file name for a memory: readable, and different for different ones."""
    return f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', said)[:60]}-{hashlib.sha256(said.encode()).hexdigest()[:6]}"


def _digest(task: Task, item: Item) -> str:
    """Of what is asked, and of the options by which it is asked and judged."""
    return hashlib.sha256(repr((sorted(vars(task).items()), item)).encode()).hexdigest()[:12]


def _known(file: Path, task: Task, items: Sequence[Item]) -> dict[int, list[Outcome]]:
    """Outcomes by item, of items that are whole and still the same; a line that was cut short is left out."""
    if not file.exists():
        return {}
    found: dict[int, dict[int, Outcome]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            stored = json.loads(line)
            parts = {name: (total, weight) for name, (total, weight) in stored["parts"].items()}
            outcome = Outcome(**{**stored, "parts": parts})
        except (ValueError, TypeError, KeyError):
            continue
        n = outcome.item
        if n < len(items) and outcome.digest == _digest(task, items[n]):
            found.setdefault(n, {})[outcome.question] = outcome
    return {n: list(each.values()) for n, each in found.items() if len(each) == len(items[n].questions)}


def _append(file: Path, outcomes: Sequence[Outcome]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(asdict(outcome), ensure_ascii=False) + "\n" for outcome in outcomes)
    # What an interrupted run left of a line must not run into the next.
    torn = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as lines:
        lines.write("\n" * torn + text)


def _keep(folder: Path, rows: Sequence[Row], *, about: Mapping[str, Any]) -> None:
    """Put rows into ``rows.json``; those of the same task, data and memory that were there make room."""
    file = folder / "rows.json"
    kept = load_rows(file)[1] if file.exists() else []
    ours = {(row.task, row.dataset, row.memory) for row in rows}
    save(file, [row for row in kept if (row.task, row.dataset, row.memory) not in ours] + list(rows), **about)
