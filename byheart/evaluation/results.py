"""What every evaluation gives: rows of one number each, with its interval and what it cost; and their files."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from byheart.errors import InputError
from byheart.evaluation.metrics import DIFFERENCE, MEAN
from byheart.evaluation.statistics import FEWEST_CLUSTERS, wilson
from byheart.protocol.grouping import group
from byheart.provenance import versions

READING_COSTS = ("reading_bytes", "reread_tokens", "first_token_seconds")
COSTS = ("tokens", "answer_seconds", *READING_COSTS)
"""What ``Result.costs`` may hold, each the mean over items.

Tokens that were written; seconds for one answer; and what reading costs: bytes that stand before the question while it
is answered, tokens of the text that the model runs again, and seconds to the first token of the answer.
"""
# Rows of byheart 0.1 do not say which way their metric is better.
_BETTER_IN_0_1 = {
    **dict.fromkeys(("loss", "perplexity", "failures", "absolute_error", "squared_error", "rmse"), False),
    **dict.fromkeys(("gap_closed_by_other_text", "law"), None),
}


@dataclass(frozen=True)
class Result:
    """One number: ``value`` over ``n`` answers, with the bounds of its 95 % interval; ``value`` if it has none.

    ``bytes`` is what a session keeps and ``seconds`` what writing takes, both the mean over items; ``costs`` are more
    of these, see ``COSTS``. ``conditions`` say what it is the number of, where a task varied lengths, distances or the
    like. ``higher_is_better`` is None for a metric that has no better. ``clusters`` is how many items were drawn, each
    with all of its questions: the interval is over them. It is 0 in rows of earlier versions, which do not say.
    """

    task: str
    dataset: str
    method: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    bytes: int
    seconds: float
    conditions: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    higher_is_better: bool | None = True
    clusters: int = 0

    @property
    def has_interval(self) -> bool:
        """Whether its bounds are those of an interval."""
        return self.low < self.high

    @property
    def interval(self) -> tuple[float, float, float]:
        """The value and its bounds, low and high."""
        return self.value, self.low, self.high

    def mapped(self, metric: str, through: Callable[[float], float]) -> Result:
        """The value and its bounds through a function that rises, as another metric."""
        value, low, high = map(through, self.interval)
        return replace(self, metric=metric, value=value, low=low, high=high)

    def flat(self) -> dict[str, Any]:
        """As it is printed and stored: conditions and costs stand beside the rest."""
        fields = asdict(self)
        conditions, costs = fields.pop("conditions"), fields.pop("costs")
        return {**fields, **conditions, **costs}

    @classmethod
    def of(cls, flat: Mapping[str, Any]) -> Result:
        """From what ``flat`` gave. Raises InputError."""
        optional = {"higher_is_better", "clusters"}
        own = cls.__dataclass_fields__.keys() - {"conditions", "costs", *optional}
        if missing := sorted(own - flat.keys()):
            raise InputError(f"This is no row of a result: it lacks {', '.join(missing)}.")
        metric = str(flat["metric"]).removeprefix(MEAN).removesuffix(DIFFERENCE)
        better = flat.get("higher_is_better", _BETTER_IN_0_1.get(metric, True))
        rest = {name: value for name, value in flat.items() if name not in {*own, *optional}}
        costs = {name: rest.pop(name) for name in COSTS if name in rest}
        about = {"conditions": rest, "costs": costs, "higher_is_better": better, "clusters": flat.get("clusters", 0)}
        return cls(**{name: flat[name] for name in own}, **about)


# ---- means ----


def means(rows: Sequence[Result], *, over: str, metric: str) -> list[Result]:
    """The mean of a metric over the values of one condition, each counting once; a row for each set of the others.

    Its bounds hold where the rows are independent; without the interval of one of them it has none.
    """
    found = [row for row in rows if row.metric == metric and over in row.conditions]
    groups = group(found, lambda row: json.dumps(_without(row, over)))
    return [_independent(members, over) for members in groups.values() if len(members) > 1]


def pool_shares(rows: Sequence[Result], *, over: str, metric: str) -> list[Result]:
    """The share of hits among all answers that differ in one condition, each of other items; a row for each set.

    Its interval is Wilson's over the items, which may be enough of them where those of one row are too few.
    """
    pooled = []
    for mean in means(rows, over=over, metric=metric):
        members = [row for row in rows if row.metric == metric and _without(row, over) == dict(mean.conditions)]
        value = sum(row.value * row.n for row in members) / mean.n
        low, high = wilson(value, mean.clusters) if mean.clusters >= FEWEST_CLUSTERS else (value, value)
        pooled.append(replace(mean, value=value, low=low, high=high))
    return pooled


def _without(row: Result, condition: str) -> dict[str, Any]:
    return {name: value for name, value in row.conditions.items() if name != condition}


def _independent(rows: Sequence[Result], over: str) -> Result:
    """The mean of rows whose intervals say nothing of one another, its bounds by Zou and Donner's MOVER (2008)."""
    total, clusters = sum(row.n for row in rows), sum(row.clusters for row in rows)
    about = {"n": total, "clusters": clusters, "conditions": _without(rows[0], over)}
    mean = average(rows, metric=f"{MEAN}{rows[0].metric}", **about)
    if not mean.has_interval:
        return mean
    below, above = (
        math.hypot(*(row.value - row.low for row in rows)) / len(rows),
        math.hypot(*(row.high - row.value for row in rows)) / len(rows),
    )
    return replace(mean, low=mean.value - below, high=mean.value + above)


def average(rows: Sequence[Result], **changes: Any) -> Result:
    """The first row with the means of all values, bounds and costs, then with ``changes``.

    There is no interval where one of the rows has none.
    """
    shared = [name for name in rows[0].costs if all(name in row.costs for row in rows)]
    value, low, high = (fmean(bounds) for bounds in zip(*(row.interval for row in rows), strict=True))
    if not all(row.has_interval for row in rows):
        low = high = value
    costs = {name: fmean(row.costs[name] for row in rows) for name in shared}
    kept, seconds = round(fmean(row.bytes for row in rows)), fmean(row.seconds for row in rows)
    mean = replace(rows[0], value=value, low=low, high=high, bytes=kept, seconds=seconds, costs=costs)
    return replace(mean, **changes)


# ---- files ----


def save(path: str | Path, rows: Sequence[Result], **arguments: Any) -> None:
    """Write rows as JSON, with the arguments that they came from, the versions and the machine."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {**arguments, "versions": versions(), "threads": torch.get_num_threads(), "machine": platform.machine()}
    text = json.dumps({"about": about, "rows": [row.flat() for row in rows]}, indent=1, ensure_ascii=False)
    file.write_text(f"{text}\n", encoding="utf-8")


def load(path: str | Path) -> tuple[dict[str, Any], list[Result]]:
    """What ``save`` wrote: what the rows came from, and the rows. Raises InputError."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        return {**stored["about"]}, [Result.of({**row}) for row in stored["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' cannot be read as results: {error}.") from error
