"""How much of a text a memory keeps, in the model's own terms: the gap that it closes between no text and the full one.

    gap closed = (loss without the text - loss with the memory) / (loss without the text - loss with the full text)

0 is a memory that helps nothing, 1 is one as good as the text itself. Every memory sees the same windows: a history is
written, as one text or turn by turn where it is a dialogue, and what follows it (lm), the answer to a question about it
(qa) or the next reply (dialog) is predicted. See docs/explanation/measures.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byheart.data.mixture import Mixture, Weighted
from byheart.errors import InputError, UsageError, require_positive
from byheart.evaluation.method_spec import MethodSpec
from byheart.evaluation.results import Result
from byheart.evaluation.statistics import draws, interval
from byheart.model.backbone import Backbone
from byheart.model.loading import DEFAULT
from byheart.model.losses import token_losses
from byheart.model.reading import Reading
from byheart.protocol.episode import Batch, collate
from byheart.protocol.method import Method
from byheart.protocol.state import State, nbytes
from byheart.session.opening import load
from byheart.session.session import Session

_FLOOR, _CEILING = "nothing", "full"
_ALL = "all"


@dataclass(frozen=True)
class Scores:
    """What one memory loses on N windows.

    ``losses`` (N,) are summed over the ``tokens`` (N,) that are predicted; ``other`` (N,) are those with another
    window's state, where asked for. ``bytes``, ``seconds`` and ``text`` tokens are means over windows.
    """

    losses: Tensor
    other: Tensor | None
    tokens: Tensor
    bytes: float
    seconds: float
    text: float


def gap(
    methods: Sequence[str],
    data: Sequence[str],
    *,
    model: str | Backbone = DEFAULT,
    windows: int = 64,
    history: Sequence[int] = (4,),
    between: Sequence[int] = (0,),
    control: bool = False,
    segment_tokens: int = 64,
    target_tokens: int = 64,
    batch: int = 8,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """The gap that each memory closes on each data set, and its loss.

    Args:
        memories: methods with their options, see ``Choice.of``, or folders of trained ones.
        data: ``PATH`` or ``PATH:weight``; weights count in the rows of all data sets together.
        history: how many segments are written, of ``segment_tokens`` each; all rows are given for each number.
        between: tokens of unrelated text that every memory's reader sees first; all rows are given for each number.
        control: also measure each memory with the state of another window.

    Raises UsageError, InputError, ModelError, and what making a memory raises.
    """
    require_positive(windows=windows, batch=batch)
    if not data or min(history, default=0) < 1 or min(between, default=-1) < 0:
        raise UsageError("A measure needs data, a history of 1 segment or more, and 0 or more tokens between.")
    if control and min(windows, batch) < 2:
        raise UsageError(f"A control needs 2 windows at once or more; here are {min(windows, batch)}.")
    opened = load(model, dtype=dtype, device=device)
    sources = [Weighted.read(source) for source in data]
    sessions = _sessions(opened, methods, len(history))
    shape = {"batch": batch, "segment_tokens": segment_tokens, "target_tokens": target_tokens, "seed": seed}
    steps = len(history) * len(sources) * len(sessions[0])
    rows: list[Result] = []
    done = 0
    for place, segments in enumerate(history):
        scores: list[dict[str, list[Scores]]] = []
        for source in sources:
            batches = _batches(opened, source, windows, segments, between, **shape)
            found: dict[str, list[Scores]] = {}
            for said, session in sessions[place].items():
                found[said] = score(session.method, batches, turns=_is_dialogue(source), control=control)
                done += 1
                progress(done, steps)
            scores.append(found)
        for variant, apart in enumerate(between):
            one = [{said: each[variant] for said, each in found.items()} for found in scores]
            rows += [row.placed(segments=segments, between=apart) for row in _tables(sources, one)]
    return rows


def _sessions(opened: Session, methods: Sequence[str], places: int) -> list[dict[str, Session]]:
    """For each length of history the floor, the ceiling and what is measured, by what they were called."""
    made: dict[str, Session] = {}

    def session(said: str, place: int) -> Session:
        choice = MethodSpec.of(said, place, places)
        known = repr(choice)
        if known not in made:
            made[known] = load(opened.backbone, method=choice.name, encoder=opened.encoder, **choice.options)
        return made[known]

    names = dict.fromkeys([_FLOOR, _CEILING, *methods])
    return [{said: session(said, place) for said in names} for place in range(places)]


def _batches(
    opened: Session, source: Weighted, windows: int, segments: int, between: Sequence[int], *, batch: int, **shape: Any
) -> list[list[Batch]]:
    """Batches of windows; each in as many forms as there are numbers of tokens between, the segments the same."""
    forms = []
    for apart in between:
        drawn = Mixture(opened.encoder, [source], segments=[segments], between=apart, batch=batch, **shape)
        forms.append(drawn.windows(windows, segments))
    found = len(forms[0])
    # A last batch of one window would have no other window for the control.
    starts = [start for start in range(0, found, batch) if start == 0 or found - start > 1]
    stops = [*starts[1:], found]
    return [[collate(form[start:stop]) for form in forms] for start, stop in zip(starts, stops, strict=True)]


def _is_dialogue(source: Weighted) -> bool:
    return all(record.task == "dialog" for record in source.data.records)


# ---- one memory ----


@torch.no_grad()
def score(
    method: Method, batches: Sequence[Sequence[Batch]], *, turns: bool = False, control: bool = False
) -> list[Scores]:
    """Write each episode's segments, read, and sum the losses of its supervised tokens; the scores of each form.

    Args:
        batches: each in one form or more that differ in their targets alone; the text is written once for all.
        turns: write segment by segment, not all segments as one text.
        control: also read the state of the next window of the batch. Raises InputError where there is none.
    """
    found = [_scored(method, forms, turns, control) for forms in batches]
    return [_joined(parts) for parts in zip(*found, strict=True)]


def _scored(method: Method, forms: Sequence[Batch], turns: bool, control: bool) -> list[Scores]:
    """The scores of one batch in each of its forms."""
    own, windows = method.backbone, forms[0].target.shape[0]
    if control and windows < 2:
        raise InputError("A control needs another window; the data have only one.")
    start = time.perf_counter()
    states = _write(method, forms[0].to(own.device), turns)
    if own.device.type == "cuda":
        torch.cuda.synchronize(own.device)
    costs = {
        "seconds": (time.perf_counter() - start) / windows,
        "bytes": sum(map(nbytes, states)) / windows,
        "text": int(forms[0].mask.sum()) / windows,
    }
    readings = [method.read(state) for state in states]
    others = [*readings[1:], readings[0]]
    return [
        Scores(
            _losses(own, readings, form), _losses(own, others, form) if control else None, form.labels.sum(1), **costs
        )
        for form in forms
    ]


def _write(method: Method, batch: Batch, turns: bool) -> list[State]:
    """The state of each window."""
    states: list[State] = [method.init()] * batch.target.shape[0]
    if not turns:
        texts = [row[real][None] for row, real in zip(batch.segments, batch.mask, strict=True)]
        return method.write_many(states, texts)
    for index in range(batch.segments.shape[1]):
        states = method.write_many(states, batch.rows(index))
    return states


def _losses(own: Backbone, readings: Sequence[Reading], given: Batch) -> Tensor:
    """Summed losses (B,) of what each row predicts behind its reading."""
    batch = given.to(own.device)
    with own.reading(readings, room=batch.target.shape[1]) as cache:
        hidden = own.hidden(batch.target, cache=cache)
    row, column = batch.labels[:, 1:].nonzero(as_tuple=True)
    each = token_losses(own, hidden[row, column], batch.target[row, column + 1]).cross_entropy
    return each.new_zeros(len(readings)).index_add(0, row, each).cpu()


def _joined(parts: Sequence[Scores], weights: Sequence[float] | None = None) -> Scores:
    """Several windows' scores as one, each part's losses and tokens times its weight."""
    counts = [len(part.losses) for part in parts]
    times = weights or [1] * len(parts)

    def mean(values: Iterable[float]) -> float:
        return sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor * weight for tensor, weight in zip(tensors, times, strict=True)])

    others = [part.other for part in parts if part.other is not None]
    return Scores(
        joined([part.losses for part in parts]),
        joined(others) if others else None,
        joined([part.tokens for part in parts]),
        mean(part.bytes for part in parts),
        mean(part.seconds for part in parts),
        mean(part.text for part in parts),
    )


# ---- rows ----


def closed(floor: Tensor, ceiling: Tensor, losses: Tensor) -> Tensor:
    """The gap closed, from losses (..., N) of the same windows."""
    return (floor - losses).sum(-1) / (floor - ceiling).sum(-1)


def _tables(sources: Sequence[Weighted], scores: Sequence[Mapping[str, Scores]]) -> list[Result]:
    """The rows of each data set, and of all together where there are several."""
    names = [Path(source.data.source).stem for source in sources]
    rows = [row for name, found in zip(names, scores, strict=True) for row in _rows(name, found)]
    if len(sources) == 1:
        return rows
    weights = [source.weight for source in sources]
    return rows + _rows(_ALL, {said: _joined([each[said] for each in scores], weights) for said in scores[0]})


def _rows(dataset: str, found: Mapping[str, Scores]) -> list[Result]:
    floor, ceiling = found[_FLOOR].losses, found[_CEILING].losses
    drawn = draws(len(floor))
    rows = []
    for said, scores in found.items():
        about = _about(dataset, said, scores)
        losses, tokens = scores.losses, scores.tokens
        rows.append(_row("loss", losses.sum() / tokens.sum(), losses[drawn].sum(-1) / tokens[drawn].sum(-1), **about))
        shares = {} if said in (_FLOOR, _CEILING) else {"gap_closed": losses}
        if scores.other is not None and said != _FLOOR:
            shares["gap_closed_by_other_text"] = scores.other
        for metric, each in shares.items():
            again = closed(floor[drawn], ceiling[drawn], each[drawn])
            rows.append(_row(metric, closed(floor, ceiling, each), again, **about))
    return rows


def _about(dataset: str, said: str, scores: Scores) -> dict[str, Any]:
    costs = {"bytes": round(scores.bytes), "seconds": scores.seconds, "at": {"tokens": scores.text}}
    return {"dataset": dataset, "method": said, "n": len(scores.losses), **costs}


def _row(metric: str, value: Tensor, again: Tensor, **about: Any) -> Result:
    low, high = interval(again)
    return Result(task="gap", metric=metric, value=value.item(), low=low, high=high, **about)
