"""Measure memories on a task: open what is named, have its items asked, and make rows of the outcomes.

Memories that keep the same and differ in decoding alone share what is written, see ``asking``. The rows of each lie in
the run's folder as soon as they are there.

It knows no task and no method.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.data.records import rows as records_of
from byheart.errors import InputError, UsageError
from byheart.evaluation.method_spec import Candidate, MethodSpec, budget_of, group_by_state
from byheart.evaluation.results import Result
from byheart.evaluation.run_folder import Outcome, RunFolder, digest_of
from byheart.evaluation.runner import run
from byheart.evaluation.statistics import draws, interval
from byheart.evaluation.task import Item, Task
from byheart.generation.contrast import require_contrast
from byheart.methods import find
from byheart.model.backbone import Backbone
from byheart.model.loading import DEFAULT
from byheart.session.opening import load
from byheart.session.session import Session

Progress = Callable[[int, int], None]


def evaluate(
    task: Task,
    data: str,
    methods: Sequence[str],
    *,
    model: str | Backbone = DEFAULT,
    limit: int = 0,
    skip: int = 0,
    seed: int = 0,
    batch: int = 8,
    against: str = "",
    out: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress = lambda done, total: None,
) -> list[Result]:
    """The numbers of each memory on one data set of a task.

    Args:
        data: a file, a folder, a data set of the hub, or the short name of one of the task's own.
        memories: ``NAME`` or ``NAME:key=value;key=value``, with options of the memory and of ``Decoding``; ``@64KB``
            behind it makes the memory as large as fits these bytes.
        limit: items at most; 0 is all.
        skip: leave out so many items before them, on which something was chosen.
        batch: items whose texts are written, and questions that are asked, at once; of the latter up to half as many
            more where few are left over.
        against: one of ``memories``; the others also get rows of how much more than it they reach on the same items,
            ``METRIC_difference``, whose intervals are narrower than those of two numbers apart.
        out: the run's folder; a run that is there goes on.

    Raises InputError, which counts items from 1 behind ``skip``; BudgetError where a memory keeps more than its bytes;
    UsageError, ModelError, and what making a memory raises.
    """
    if batch < 1 or min(limit, skip) < 0:
        raise UsageError(f"batch must be 1 or more, limit and skip 0 or more; they are {batch}, {limit} and {skip}.")
    if against and against not in methods:
        raise UsageError(f"'{against}' is none of the memories that are measured: {', '.join(methods)}.")
    opened = load(model, dtype=dtype, device=device)
    source = task.sources.get(data, data)
    records = list(records_of(source))
    items = list(islice(task.items(records, seed), skip, skip + limit if limit else None))
    if not items:
        raise InputError(f"'{data}' gives no item for {task.name}{f' after {skip}' * bool(skip)}.")
    ones = _measured(list(dict.fromkeys(methods)), opened, items)
    for one in ones:
        # What cannot be decoded is refused before anything is written.
        require_contrast(one.how(task), [one.session.reading])
    sheet = _Sheet(task, opened, data if data in task.sources else Path(source).stem)
    sheet.settings = {"limit": limit, "skip": skip, "records": digest_of(records), "against": against}
    if out is not None:
        sheet.open(out, source, seed)
    steps = sum(len(item.texts) + len(item.questions) for item in items)
    found: dict[str, list[Outcome]] = {}
    for group in group_by_state(ones):

        def tell(done: int, before: int = len(found) * steps) -> None:
            progress(before + done, len(ones) * steps)

        outcomes = run(task, items, group, batch=batch, files=sheet.files(group), progress=tell)
        for one, own in zip(group, outcomes, strict=True):
            found[one.said], made = own, _rows(task, sheet.name, one.said, own)
            sheet.put(one, made + task.summary(made))
    for one in ones:
        if against and one.said != against:
            sheet.put(one, _rows(task, sheet.name, one.said, found[one.said], found[against]))
    return [row for one in ones for row in sheet.rows[one.said]]


class _Sheet:
    """The rows of every memory, and where a run has a folder, the rows and the answers there."""

    def __init__(self, task: Task, opened: Session, name: str) -> None:
        self.task, self.opened, self.name = task, opened, name
        self.settings: dict[str, Any] = {}
        self.rows: dict[str, list[Result]] = {}
        self._folder: RunFolder | None = None
        self._about: dict[str, Any] = {}

    def open(self, out: str | Path, source: str, seed: int) -> None:
        """Keep all in a folder from here on, where the data may have a longer name."""
        dtype = str(self.opened.backbone.dtype).removeprefix("torch.")
        self._folder = RunFolder(out, backbone=self.opened.backbone.fingerprint, dtype=dtype, seed=seed)
        self._about = {"model": self.opened.backbone.source, "dtype": dtype, "seed": seed}
        self.name = self._folder.named(self.name, source, self.settings["records"])

    def files(self, group: Sequence[Candidate]) -> list[Path]:
        """Of the memories' answers; none without a folder."""
        return [_answers_of(one, self.task, self.name, self._folder) for one in group] if self._folder else []

    def put(self, one: Candidate, more: list[Result]) -> None:
        """More rows of a memory."""
        self.rows[one.said] = self.rows.get(one.said, []) + more
        if self._folder is not None:
            named = {"task": self.task.name, "dataset": self.name, "method": one.said, "options": vars(self.task)}
            run = {**named, **self.settings, "resolved": one.session.header.options}
            self._folder.keep(self.rows[one.said], run, **self._about)


def _answers_of(one: Candidate, task: Task, dataset: str, folder: RunFolder) -> Path:
    """The file of a memory's answers."""
    header = one.session.header
    # Whether a text is written as a turn is no option, but decides what a memory is given.
    turns = ["turns"] * (one.session.method.text_format == "turn")
    decides = (
        header.method,
        sorted(header.options.items()),
        header.adapter,
        header.tokenizer,
        one.how(task),
        *turns,
    )
    return folder.answers(task.name, dataset, one.said, *decides)


def _measured(methods: Sequence[str], opened: Session, items: Sequence[Item]) -> list[Candidate]:
    """The memories, made before anything is asked of one."""
    return [Candidate.of(said, opened, tokens=_longest(said, items, opened)) for said in methods]


def _longest(said: str, items: Sequence[Item], opened: Session) -> int:
    """Tokens of the longest text as this memory is given it, where its bytes are to be fitted to it; else 0."""
    plain, budget = budget_of(said)
    if not budget:
        return 0
    turns = find(MethodSpec.of(plain, 0, 1).name).text_format == "turn"
    return max(_tokens(item, opened, turns=turns and item.framed) for item in items)


def _tokens(item: Item, opened: Session, *, turns: bool) -> int:
    """Of an item's texts, with what stands around them."""
    encoder = opened.encoder
    bare = sum(len(encoder.continuation(text)) for text in item.texts) + len(encoder.start)
    around = encoder.template_tokens() if turns else {"opening": [], "receipt": []}
    return bare + len(around["opening"]) + len(around["receipt"]) * len(item.texts)


# ---- rows ----


def _rows(
    task: Task, dataset: str, said: str, outcomes: Sequence[Outcome], others: Sequence[Outcome] = ()
) -> list[Result]:
    """A row for each metric and each thing that it is the number of, in the order in which they came.

    Args:
        others: those of another memory to the same questions; the rows are then differences from it.
    """
    groups, than = _grouped(outcomes), _grouped(others)
    return [_row(task, dataset, said, *key, members, than.get(key, [])) for key, members in groups.items()]


def _grouped(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    """By metric and what it is the number of."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        for metric in dict.fromkeys(map(_metric, outcome.parts)):
            groups.setdefault((metric, json.dumps(outcome.at)), []).append(outcome)
    return groups


def _metric(part: str) -> str:
    """The metric that a part belongs to: what stands before a class."""
    return part.partition("/")[0]


def _row(
    task: Task, dataset: str, said: str, metric: str, at: str, members: Sequence[Outcome], others: Sequence[Outcome]
) -> Result:
    """Questions of one item are no independent draws: whole items are drawn, the same ones for both memories."""
    value, drawn = _drawn(metric, members)
    if others:
        less = _drawn(metric, others)
        value, drawn, metric = value - less[0], drawn - less[1], f"{metric}_difference"
    low, high = interval(drawn)
    return Result(
        task=task.name,
        dataset=dataset,
        method=said,
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=len(members),
        bytes=round(sum(outcome.bytes for outcome in members) / len(members)),
        seconds=sum(outcome.write_seconds for outcome in members) / len(members),
        at={**json.loads(at), "answer_seconds": sum(outcome.answer_seconds for outcome in members) / len(members)},
    )


def _drawn(metric: str, members: Sequence[Outcome]) -> tuple[float, Float[Tensor, " R"]]:
    """The number over all items, and over each draw of them."""
    place = {number: n for n, number in enumerate(sorted({outcome.item for outcome in members}))}
    # Totals and weights of each item, by class.
    sums: dict[str, Tensor] = {}
    for outcome in members:
        for name in (name for name in outcome.parts if _metric(name) == metric):
            own = sums.setdefault(name, torch.zeros(2, len(place), dtype=torch.double))
            own[:, place[outcome.item]] += torch.tensor(outcome.parts[name], dtype=torch.double)
    chosen = draws(len(place))
    whole = _over_classes([own.sum(-1) for own in sums.values()]).item()
    return whole, _over_classes([own[:, chosen].sum(-1) for own in sums.values()])


def _over_classes(sums: Sequence[Float[Tensor, "2 ..."]]) -> Float[Tensor, "..."]:
    """The mean, over the classes that have any weight, of totals over weights."""
    totals, weights = torch.stack(list(sums), dim=1)
    there = weights > 0
    means: Tensor = torch.where(there, totals / weights, 0).sum(0) / there.sum(0)
    return means
