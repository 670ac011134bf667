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
from byheart.provenance import versions


@dataclass(frozen=True)
class Result:
    """One number: ``value`` over ``n`` items, with the bounds of its 95 % interval.

    ``bytes`` is what a session keeps and ``seconds`` what writing takes, both the mean over items. ``at`` says what it
    is the number of, where a task has one for each of several lengths, distances and the like.
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
    at: Mapping[str, Any] = field(default_factory=dict)

    def placed(self, **at: Any) -> Result:
        """The same number, said to be of more."""
        return replace(self, at={**at, **self.at})

    def mapped(self, metric: str, through: Callable[[float], float]) -> Result:
        """Another number of the same: the value and its bounds through a function that rises."""
        bounds = through(self.low), through(self.high)
        return replace(self, metric=metric, value=through(self.value), low=bounds[0], high=bounds[1])

    def flat(self) -> dict[str, Any]:
        """As it is printed and kept: what it is the number of stands beside the rest."""
        told = asdict(self)
        at = told.pop("at")
        return {**told, **at}

    @classmethod
    def of(cls, flat: Mapping[str, Any]) -> Result:
        """From what ``flat`` gave. Raises InputError."""
        own = {name for name in cls.__dataclass_fields__ if name != "at"}
        if missing := sorted(own - flat.keys()):
            raise InputError(f"This is no row of a result: it lacks {', '.join(missing)}.")
        rest = {name: value for name, value in flat.items() if name not in own}
        return cls(**{name: flat[name] for name in own}, at=rest)


# ---- means ----


def means(rows: Sequence[Result], *, over: str, metric: str) -> list[Result]:
    """The mean of a metric over what ``over`` tells apart, in which each counts once; one row for the rest of ``at``.

    Its bounds hold where the rows are independent and their intervals symmetric.
    """
    groups: dict[str, list[Result]] = {}
    for row in rows:
        if row.metric == metric and over in row.at:
            groups.setdefault(json.dumps(_placed(row, over)), []).append(row)
    return [_mean(group, over) for group in groups.values() if len(group) > 1]


def _placed(row: Result, over: str) -> dict[str, Any]:
    return {name: value for name, value in row.at.items() if name not in (over, "answer_seconds")}


def _mean(group: Sequence[Result], over: str) -> Result:
    value = fmean(row.value for row in group)
    spread = math.hypot(*((row.high - row.low) / 2 for row in group)) / len(group)
    return replace(
        group[0],
        metric=f"mean_{group[0].metric}",
        value=value,
        low=value - spread,
        high=value + spread,
        n=sum(row.n for row in group),
        bytes=round(fmean(row.bytes for row in group)),
        seconds=fmean(row.seconds for row in group),
        at=_placed(group[0], over),
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
