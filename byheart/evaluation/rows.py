"""Rows made of the outcomes of one method: the number of each metric, and its interval over items, see ``statistics``.

It knows no method and no model, and of a task only how to compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.evaluation.metrics import CONTROLS, DIFFERENCE
from byheart.evaluation.results import READING_COSTS, Result
from byheart.evaluation.run_folder import Outcome
from byheart.evaluation.statistics import bounds, draws
from byheart.evaluation.task import Task, Totals
from byheart.protocol.grouping import group


class Key(NamedTuple):
    """What a row is the number of: a metric, and the conditions as JSON."""

    metric: str
    conditions: str


class SoFar:
    """The means of a method's metrics over the answers that are there, without intervals."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """By metric, with these answers too; a metric of classes is the mean over those that have occurred."""
        for name, (total, weight) in (part for outcome in outcomes for part in outcome.parts.items()):
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = before[0] + total, before[1] + weight
        means = {name: total / weight for name, (total, weight) in self._sums.items() if weight}
        return {metric: fmean(means[name] for name in names) for metric, names in group(means, _metric).items()}


def make_rows(task: Task, dataset: str, spec: str, outcomes: Mapping[str, Sequence[Outcome]]) -> list[Result]:
    """The rows of ``spec``: one for each metric and its conditions, in the order in which they came.

    Args:
        outcomes: of ``spec`` and of the task's references, by their specs.
    """
    groups = {name: _group(outcomes[name]) for name in (spec, *task.references)}
    row = partial(_row, task, dataset, spec)
    rows = [row(key, found, *_measure(key.metric, found)) for key, found in groups[spec].items()]
    if not task.references:
        return rows
    control = _group([replace(outcome, parts=outcome.control) for outcome in outcomes[spec]])
    for conditions in dict.fromkeys(key.conditions for key in groups[spec]):
        members = next(found for key, found in groups[spec].items() if key.conditions == conditions)
        sums = {name: _totals(found, conditions) for name, found in groups.items()}
        compared, sampled = (
            task.compare(spec, {name: _pick(own, picks) for name, own in sums.items()}, _pick(theirs, picks))
            for theirs in [_totals(control, conditions)]
            for picks in (slice(None), draws(len(next(iter(sums[spec].values())))))
        )
        rows += [row(Key(metric, conditions), members, value, sampled[metric]) for metric, value in compared.items()]
    return rows


def _totals(groups: Mapping[Key, Sequence[Outcome]], conditions: str) -> Totals:
    """By metric, the total of each item."""
    return {key.metric: _sums(key.metric, found)[0][0] for key, found in groups.items() if key.conditions == conditions}


def _pick(totals: Totals, picks: Tensor | slice) -> Totals:
    """The sums over all items, or over each sample of them."""
    return {metric: total[picks].sum(-1) for metric, total in totals.items()}


def make_differences(
    task: Task,
    dataset: str,
    spec: str,
    outcomes: Sequence[Outcome],
    others: Sequence[Outcome],
    *,
    suffix: str = DIFFERENCE,
) -> list[Result]:
    """How much more than another method's each number is, on the same items: samples have the same ones for both.

    Metrics that have no better are left out.

    Args:
        suffix: what is added to the names of metrics.
    """
    rows, theirs = [], _group(others)
    judged = {
        key: found for key, found in _group(outcomes).items() if task.higher_is_better.get(key.metric, True) is not None
    }
    for key, members in judged.items():
        (value, sampled), (less, sampled_less) = _measure(key.metric, members), _measure(key.metric, theirs[key])
        named = Key(f"{key.metric}{suffix}", key.conditions)
        rows.append(_row(task, dataset, spec, named, members, value - less, sampled - sampled_less))
    return rows


def _group(outcomes: Sequence[Outcome]) -> dict[Key, list[Outcome]]:
    """By metric and conditions."""
    groups: dict[Key, list[Outcome]] = {}
    for outcome in outcomes:
        for metric in dict.fromkeys(map(_metric, outcome.parts)):
            groups.setdefault(Key(metric, json.dumps(outcome.conditions)), []).append(outcome)
    return groups


def _metric(part: str) -> str:
    """The metric that a part belongs to: what stands before a class."""
    return part.partition("/")[0]


def _row(
    task: Task, dataset: str, spec: str, key: Key, members: Sequence[Outcome], value: Tensor, sampled: Tensor
) -> Result:
    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(members)

    clusters = len({outcome.item for outcome in members})
    answers = len(members) if _is_share(task, key.metric, members) else 0
    low, high = bounds(value.item(), sampled, clusters, answers=answers)
    costs = {"tokens": mean(o.tokens for o in members), "answer_seconds": mean(o.answer_seconds for o in members)}
    for name in READING_COSTS:
        found = [cost for cost in (getattr(outcome, name) for outcome in members) if cost is not None]
        costs |= {name: mean(found)} if len(found) == len(members) else {}
    numbers = (value.item(), low, high, len(members), round(mean(outcome.bytes for outcome in members)))
    seconds = mean(outcome.write_seconds for outcome in members)
    better = task.higher_is_better.get(_without_suffix(key.metric), True)
    about = (json.loads(key.conditions), costs, better, clusters)
    return Result(task.name, dataset, spec, key.metric, *numbers, seconds, *about)


def _is_share(task: Task, metric: str, members: Sequence[Outcome]) -> bool:
    """Whether a metric is a share of hits, each answer being all or nothing; means over classes are none."""
    parts = [outcome.parts[metric] for outcome in members if metric in outcome.parts]
    hits = all(total in (0, weight) for total, weight in parts)
    return metric not in task.unbounded and len(parts) == len(members) and hits


def _without_suffix(metric: str) -> str:
    """The metric that a difference is one of."""
    suffix = next((end for end in (DIFFERENCE, *CONTROLS.values()) if metric.endswith(end)), "")
    return metric.removesuffix(suffix)


def _measure(metric: str, members: Sequence[Outcome]) -> tuple[Tensor, Float[Tensor, " D"]]:
    """The number over all items, and over each sample of them.

    Questions of one item are no independent draws, so whole items are drawn.
    """
    sums = _sums(metric, members)
    picks = draws(sums[0].shape[-1])
    return _over_classes([found.sum(-1) for found in sums]), _over_classes([found[:, picks].sum(-1) for found in sums])


def _sums(metric: str, members: Sequence[Outcome]) -> list[Float[Tensor, "2 N"]]:
    """For each class of a metric, the totals and weights of each of N items."""
    places = {item: place for place, item in enumerate(sorted({outcome.item for outcome in members}))}
    sums: dict[str, Tensor] = {}
    for outcome in members:
        for name in (name for name in outcome.parts if _metric(name) == metric):
            found = sums.setdefault(name, torch.zeros(2, len(places), dtype=torch.double))
            found[:, places[outcome.item]] += torch.tensor(outcome.parts[name], dtype=torch.double)
    return list(sums.values())


def _over_classes(sums: Sequence[Float[Tensor, "2 ..."]]) -> Float[Tensor, "..."]:
    """The mean, over the classes that have any weight, of totals over weights."""
    totals, weights = torch.stack(list(sums), dim=1)
    there = weights > 0
    means: Tensor = torch.where(there, totals / weights, 0).sum(0) / there.sum(0)
    return means


def pool(outcomes: Sequence[Sequence[Outcome]], weights: Sequence[float]) -> list[Outcome]:
    """The outcomes of several data sets as those of one, each part times the weight of its data set."""
    pooled: list[Outcome] = []
    for found, weight in zip(outcomes, weights, strict=True):
        first = 1 + max((outcome.item for outcome in pooled), default=-1)
        pooled += [outcome.moved(first, weight) for outcome in found]
    return pooled
