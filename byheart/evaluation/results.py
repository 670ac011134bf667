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
from byheart.evaluation.metrics import MEAN, Metric, declared
from byheart.provenance import versions

COSTS = ("tokens", "answer_seconds")
"""What ``Result.costs`` may hold: tokens written, and seconds for one answer, both the mean over items."""


@dataclass(frozen=True)
class Result:
    """One number: ``value`` over ``n`` items, with the bounds of its 95 % interval.

    ``bytes`` is what a session keeps and ``seconds`` what writing takes, both the mean over items; ``costs`` are more
    of these, see ``COSTS``. ``conditions`` say what it is the number of, where a task varied lengths, distances or the
    like. ``higher_is_better`` is None for a metric that has no better.
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

    def as_metric(self, metric: Metric) -> Result:
        """The same number as one of another metric."""
        return replace(self, metric=metric.name, higher_is_better=metric.higher_is_better)

    def mapped(self, metric: str, through: Callable[[float], float]) -> Result:
        """The value and its bounds through a function that rises, as another metric."""
        low, high = through(self.low), through(self.high)
        return replace(self.as_metric(declared(metric)), value=through(self.value), low=low, high=high)

    def flat(self) -> dict[str, Any]:
        """As it is printed and stored: conditions and costs stand beside the rest."""
        fields = asdict(self)
        conditions, costs = fields.pop("conditions"), fields.pop("costs")
        return {**fields, **conditions, **costs}

    @classmethod
    def of(cls, flat: Mapping[str, Any]) -> Result:
        """From what ``flat`` gave. Raises InputError."""
        own = cls.__dataclass_fields__.keys() - {"conditions", "costs", "higher_is_better"}
        if missing := sorted(own - flat.keys()):
            raise InputError(f"This is no row of a result: it lacks {', '.join(missing)}.")
        # Files of earlier versions lack it.
        better = flat.get("higher_is_better", declared(str(flat["metric"])).higher_is_better)
        rest = {name: value for name, value in flat.items() if name not in {*own, "higher_is_better"}}
        costs = {name: rest.pop(name) for name in COSTS if name in rest}
        return cls(**{name: flat[name] for name in own}, conditions=rest, costs=costs, higher_is_better=better)


# ---- means ----


def means(rows: Sequence[Result], *, over: str, metric: str) -> list[Result]:
    """The mean of a metric over the values of one condition, each counting once; a row for each set of the others.

    Its bounds hold where the rows are independent and their intervals symmetric.
    """
    groups: dict[str, list[Result]] = {}
    for row in rows:
        if row.metric == metric and over in row.conditions:
            groups.setdefault(json.dumps(_without(row, over)), []).append(row)
    return [_mean(group, over) for group in groups.values() if len(group) > 1]


def _without(row: Result, condition: str) -> dict[str, Any]:
    return {name: value for name, value in row.conditions.items() if name != condition}


def _mean(group: Sequence[Result], over: str) -> Result:
    value = fmean(row.value for row in group)
    spread = math.hypot(*((row.high - row.low) / 2 for row in group)) / len(group)
    return replace(
        group[0],
        metric=f"{MEAN}{group[0].metric}",
        value=value,
        low=value - spread,
        high=value + spread,
        n=sum(row.n for row in group),
        bytes=round(fmean(row.bytes for row in group)),
        seconds=fmean(row.seconds for row in group),
        conditions=_without(group[0], over),
        costs={name: fmean(row.costs[name] for row in group) for name in group[0].costs},
    )


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
