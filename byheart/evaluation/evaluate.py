"""Measure methods on a task: open what is named, have its items asked, and make rows of the outcomes.

Methods that keep the same and differ in decoding alone share what is written, see ``runner``. The rows of each are in
the run's folder as soon as they are there.

It knows no task and no method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from byheart.data.hub import short_name
from byheart.data.mixture import split_weight
from byheart.data.records import Fields, rows as read_records
from byheart.errors import InputError, UsageError
from byheart.evaluation import predictions as prediction_files
from byheart.evaluation.method_spec import (
    Candidate,
    MethodSpec,
    group_by_state,
    split_budget,
    text_lengths,
    with_controls,
    without_control,
)
from byheart.evaluation.metrics import CONTROLS, DIFFERENCE
from byheart.evaluation.results import Result
from byheart.evaluation.rows import SoFar, make_differences, make_rows, pool
from byheart.evaluation.run_folder import Outcome, RunFolder, digest_of, file_name
from byheart.evaluation.runner import run
from byheart.evaluation.task import Item, Task
from byheart.generation.contrast import require_contrast
from byheart.model.backbone import Backbone
from byheart.model.loading import DEFAULT
from byheart.session.opening import load
from byheart.session.session import Session
from byheart.text.encoder import ChatEncoder

Progress = Callable[[int, int], None]
Live = Callable[[str, Mapping[str, float]], None]
_POOLED = "all"


def evaluate(
    task: Task,
    data: str | Sequence[str],
    methods: Sequence[str],
    *,
    model: str | Backbone = DEFAULT,
    limit: int = 0,
    skip: int = 0,
    seed: int = 0,
    batch: int = 8,
    against: str = "",
    control: Sequence[str] = (),
    out: str | Path | None = None,
    predictions: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    system_prompt: bool = True,
    progress: Progress = lambda done, total: None,
    live: Live = lambda method, so_far: None,
) -> list[Result]:
    """The numbers of each method on each data set of a task.

    Args:
        data: files, folders, data sets of the hub, or short names of the task's own; where a task also takes them
            together, ``PATH:weight`` says how much each counts in that.
        methods: ``NAME`` or ``NAME:key=value;key=value``, with options of the method and of ``Decoding``; ``@64KiB``
            after it makes the memory of each item as large as fits these bytes. Two more say how it is measured:
            ``control=nothing`` or ``control=other`` asks it without the item's text, and ``model=FOLDER`` on another
            model, such as one adapted with the full text.
        limit: items of each data set at most; 0 is all.
        skip: leave out so many items before them, on which something was chosen.
        batch: items whose texts are written, and questions that are asked, at once; of the latter up to half as many
            more where few are left over.
        against: one of ``methods``; the others also get rows of how much more than it they reach on the same items,
            ``METRIC_difference``, whose intervals are narrower than those of two numbers apart.
        control: ``nothing``, ``other`` or both: each method but ``nothing`` is also asked after nothing was written, or
            after the text of another item. Wherever a method and a control of it are measured, it gets rows of how
            much more its own text gives, ``METRIC_over_nothing`` and ``METRIC_over_other_text``, on the same items.
        out: the run's folder; a run that is there is resumed.
        predictions: a folder; each method's answers to a data set are also written there, in a file of the form that
            ``predictions`` reads. With ``out``, those of a run that is there are, without asking again.
        system_prompt: keep what the model's chat template says of its own before every conversation.
        progress: called with the texts and questions that are done, and with all of them.
        live: called after every batch with a method, as it was given, and the mean of each metric over its answers to
            this data set so far, those that were there among them.

    Raises InputError, which counts items from 1 after ``skip``; BudgetError where a memory keeps more than its bytes;
    UsageError, ModelError, and what making a method raises.
    """
    sources = [data] if isinstance(data, str) else list(data)
    if batch < 1 or min(limit, skip) < 0:
        raise UsageError(f"batch must be 1 or more, limit and skip 0 or more; they are {batch}, {limit} and {skip}.")
    if against and against not in methods:
        raise UsageError(f"'{against}' is none of the methods that are measured: {', '.join(methods)}.")
    if not sources:
        raise UsageError("There are no data to measure on; give a file, a folder or a data set.")
    specs = with_controls(list(dict.fromkeys([*task.references, *methods])), control)
    opened = load(model, method="nothing", dtype=dtype, device=device, system_prompt=system_prompt)
    settings = {"limit": limit, "skip": skip, "against": against}
    # Where it is kept, runs are told apart by nothing more than before.
    settings |= {} if system_prompt else {"system_prompt": False}
    candidates = _Candidates(specs, opened)
    sheets = [_Sheet.open(task, source, candidates, settings, seed) for source in sources]
    if out is not None:
        dtype_name = str(opened.backbone.dtype).removeprefix("torch.")
        folder = RunFolder(out, backbone=opened.backbone.fingerprint, dtype=dtype_name, seed=seed)
        for sheet in sheets:
            sheet.keep_in(folder, model=opened.backbone.source, dtype=dtype_name, seed=seed)
    if predictions is not None:
        for sheet in sheets:
            sheet.require_predictions()
    total, done = sum(sheet.steps for sheet in sheets), 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        progress(done, total)

    for sheet in sheets:
        sheet.measure(batch, advance, live)
        if predictions is not None:
            sheet.write_predictions(Path(predictions))
    rows = [row for sheet in sheets for spec in specs for row in sheet.rows.get(spec, [])]
    return rows + (_pooled(sheets, specs) if task.pooled and len(sheets) > 1 else [])


def _pooled(sheets: Sequence[_Sheet], specs: Sequence[str]) -> list[Result]:
    """The rows of all data sets together."""
    weights, pooled = [sheet.weight for sheet in sheets], replace(sheets[0], name=_POOLED, rows={})
    for parts in zip(*(sheet.parts for sheet in sheets), strict=True):
        outcomes = {spec: pool([part.outcomes[spec] for part in parts], weights) for spec in specs}
        for candidate in parts[0].candidates:
            pooled.put(candidate, parts[0].task, outcomes)
    return [row for spec in specs for row in pooled.rows[spec]]


@dataclass
class _Part:
    """One part of a task: its items, the methods that are measured on them, and by their specs what came out."""

    task: Task
    items: Sequence[Item]
    candidates: Sequence[Candidate]
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)

    def official(self, spec: str) -> dict[str, list[Fields]]:
        """A method's answers as official scorers read them: lines by the name of their file."""
        lines: dict[str, list[Fields]] = {}
        for outcome in self.outcomes[spec]:
            question = self.items[outcome.item].questions[outcome.question]
            if found := self.task.official(question, outcome.text):
                lines.setdefault(found[0], []).append(found[1])
        return lines


@dataclass(frozen=True)
class _Candidates:
    """Opens what is measured; each method once, whatever it is measured on."""

    specs: Sequence[str]
    opened: Session
    known: dict[str, Candidate] = field(default_factory=dict)
    models: dict[str, Session] = field(default_factory=dict)

    def open(self, task: Task, items: Sequence[Item], place: int, places: int) -> list[Candidate]:
        """The methods for one part of a task. Raises UsageError where one cannot be decoded as it says."""
        candidates = []
        for spec in self.specs:
            plain, budget = split_budget(spec)
            method = MethodSpec.of(plain, place, places)
            tokens = _longest(method.name, items, self.opened.encoder) if budget else []
            key = repr((spec, tokens, method))
            if key not in self.known:
                model = self._open_model(str(method.options.get("model", "")))
                self.known[key] = Candidate.of(spec, model, tokens=tokens, place=place, places=places)
            candidates.append(self.known[key])
            # What cannot be decoded is refused before anything is written.
            require_contrast(candidates[-1].decoding_for(task), [candidates[-1].session.reading])
        return candidates

    def _open_model(self, model: str) -> Session:
        """A session of the model that a method names, opened once, or of the one that all are measured on."""
        if not model:
            return self.opened
        if model not in self.models:
            own = self.opened.backbone
            dtype, device = str(own.dtype).removeprefix("torch."), str(own.device)
            system_prompt = self.opened.encoder.system_prompt
            self.models[model] = load(model, method="nothing", dtype=dtype, device=device, system_prompt=system_prompt)
        return self.models[model]


@dataclass
class _Sheet:
    """The rows of every method on one data set, and where a run has a folder, the rows and the answers there."""

    task: Task
    name: str
    weight: float
    parts: Sequence[_Part]
    settings: dict[str, Any]
    folder: RunFolder | None = None
    about: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, list[Result]] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def open(cls, task: Task, data: str, candidates: _Candidates, settings: dict[str, Any], seed: int) -> _Sheet:
        """Read the data and make the methods, before anything is asked of one."""
        data, weight = split_weight(data) if task.pooled else (data, 1.0)
        source = task.sources.get(data, data)
        records = list(read_records(source))
        split, limit, skip = task.split(candidates.opened.encoder), settings["limit"], settings["skip"]
        parts = []
        for place, part in enumerate(split):
            items = list(islice(part.items(records, seed), skip, skip + limit if limit else None))
            if not items:
                raise InputError(f"'{data}' gives no item for {task.name}{f' after {skip}' * bool(skip)}.")
            parts.append(_Part(part, items, candidates.open(part, items, place, len(split))))
        name = data if data in task.sources else Path(short_name(source)).stem
        return cls(task, name, weight, parts, {**settings, "records": digest_of(records)}, source=source)

    @property
    def steps(self) -> int:
        return sum(item.steps * len(part.candidates) for part in self.parts for item in part.items)

    def keep_in(self, folder: RunFolder, **about: Any) -> None:
        """Keep all in a folder from here on, where the data may have a longer name."""
        self.folder, self.about = folder, about
        self.name = folder.named(self.name, self.source, self.settings["records"])

    def measure(self, batch: int, advance: Callable[[int], None], live: Live) -> None:
        """Ask every method, and put its rows."""
        for part in self.parts:
            waiting: list[Candidate] = []
            for group in group_by_state(part.candidates):
                files = [_answers_file(self.folder, each, part.task, self.name) for each in group if self.folder]
                seen = _report(group, live)
                outcomes = run(part.task, part.items, group, batch=batch, files=files, advance=advance, seen=seen)
                part.outcomes |= {candidate.spec: found for candidate, found in zip(group, outcomes, strict=True)}
                waiting += group
                if self.folder is not None:
                    for candidate in group:
                        self.folder.keep_official(candidate.spec, part.official(candidate.spec))
                # Rows compare with the references, which come first.
                if part.outcomes.keys() >= set(self.task.references):
                    while waiting:
                        self.put(waiting.pop(0), part.task, part.outcomes)
            self._put_differences(part)

    def require_predictions(self) -> None:
        """Raise UsageError unless every question is one record's, and is answered in words."""
        asked = [question for part in self.parts for item in part.items for question in item.questions]
        if self.task.asks != "words" or not all(question.record for question in asked):
            raise UsageError(
                f"{self.task.name} has no answer in words for each record, so it gives no predictions; leave out "
                "predictions (--predictions)."
            )

    def write_predictions(self, folder: Path) -> None:
        """Write a file of each method's answers."""
        for spec in self.parts[0].outcomes:
            answers = [
                (part.items[outcome.item].questions[outcome.question], outcome.text)
                for part in self.parts
                for outcome in part.outcomes[spec]
            ]
            prediction_files.write(folder / f"{self.task.name}_{self.name}_{file_name(spec)}", spec, answers)

    def put(self, candidate: Candidate, task: Task, outcomes: dict[str, list[Outcome]]) -> None:
        """The rows of a method on one part of the task."""
        rows = make_rows(task, self.name, candidate.spec, outcomes)
        references = {name: self.rows.get(name, []) for name in task.references}
        # A text that was never written cannot be forgotten.
        expected = [] if candidate.control else task.expect(rows, references, candidate.session.method.share_left)
        self._add(candidate, rows + task.summary(rows) + expected)

    def _put_differences(self, part: _Part) -> None:
        """Rows of how much more a method reaches than the one that all are set against, and than its controls."""
        against = self.settings["against"]
        for candidate in part.candidates:
            others = {against: DIFFERENCE} if against not in ("", candidate.spec) else {}
            controls = {
                other.spec: CONTROLS[other.control]
                for other in part.candidates
                if other.control and without_control(other.spec) == candidate.spec
            }
            for other, suffix in [*others.items(), *controls.items()]:
                pair = part.outcomes[candidate.spec], part.outcomes[other]
                self._add(candidate, make_differences(part.task, self.name, candidate.spec, *pair, suffix=suffix))

    def _add(self, candidate: Candidate, rows: list[Result]) -> None:
        """More rows of a method; of a control, more is no better."""
        if candidate.control:
            rows = [replace(row, higher_is_better=None) for row in rows]
        self.rows[candidate.spec] = self.rows.get(candidate.spec, []) + rows
        if self.folder is not None:
            named = {"task": self.task.name, "dataset": self.name, "method": candidate.spec}
            options = {"options": self.task.options(), "resolved": candidate.session.header.options}
            self.folder.keep(self.rows[candidate.spec], {**named, **self.settings, **options}, **self.about)


def _report(group: Sequence[Candidate], live: Live) -> Callable[[int, Sequence[Outcome]], None]:
    """Takes the outcomes of each candidate as they come, and says what its metrics are so far."""
    so_far = [SoFar() for _ in group]

    def seen(place: int, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            live(group[place].spec, so_far[place].add(outcomes))

    return seen


def _answers_file(folder: RunFolder, candidate: Candidate, task: Task, dataset: str) -> Path:
    """The file of a method's answers."""
    header = candidate.session.header
    # Whether a text is written as a turn is no option, but decides what a memory is given.
    turns = ["turns"] * (candidate.session.method.text_format == "turn")
    own_model = [header.backbone] * (folder.settings["backbone"] != header.backbone)
    decoding = candidate.decoding_for(task)
    # Options that fit a number of bytes are other ones for each item.
    sized = ["by item"] * bool(candidate.budget)
    options = sorted(header.options.items())
    settings = (header.method, options, header.adapter, header.tokenizer, decoding, *turns, *own_model, *sized)
    return folder.answers(task.name, dataset, candidate.spec, *settings)


def _longest(method: str, items: Sequence[Item], encoder: ChatEncoder) -> list[int]:
    """Tokens of each text of the item that has the most, as this method is given them."""
    return max((text_lengths(item, method, encoder) for item in items), key=sum)
