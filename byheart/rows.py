"""What every evaluation gives: rows of one number each, with its interval and what it cost; and their files."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.errors import InputError, UsageError

_DRAWS = 1000
_ASKED = 'NAME or NAME:key=value;key=value, such as "window:sinks=1;recent=15"'


@dataclass(frozen=True)
class Row:
    """One number: ``value`` over ``n`` items, with the bounds of its 95 % interval.

    ``bytes`` is what a session keeps and ``seconds`` what writing takes, both the mean over items. ``at`` says what it
    is the number of, where a task has one for each of several lengths, distances and the like.
    """

    task: str
    dataset: str
    memory: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    bytes: int
    seconds: float
    at: Mapping[str, Any] = field(default_factory=dict)

    def placed(self, **at: Any) -> Row:
        """The same number, said to be of more."""
        return replace(self, at={**at, **self.at})

    def mapped(self, metric: str, through: Callable[[float], float]) -> Row:
        """Another number of the same: the value and its bounds through a function that rises."""
        bounds = through(self.low), through(self.high)
        return replace(self, metric=metric, value=through(self.value), low=bounds[0], high=bounds[1])

    def flat(self) -> dict[str, Any]:
        """As it is printed and kept: what it is the number of stands beside the rest."""
        told = asdict(self)
        at = told.pop("at")
        return {**told, **at}

    @classmethod
    def of(cls, flat: Mapping[str, Any]) -> Row:
        """From what ``flat`` gave. Raises InputError."""
        own = {name for name in cls.__dataclass_fields__ if name != "at"}
        if missing := sorted(own - flat.keys()):
            raise InputError(f"This is no row of a result: it lacks {', '.join(missing)}.")
        rest = {name: value for name, value in flat.items() if name not in own}
        return cls(**{name: flat[name] for name in own}, at=rest)


class Choice(NamedTuple):
    """A memory to measure: a mechanism's name or a folder, and its options."""

    name: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, said: str, place: int, places: int) -> Choice:
        """Read ``NAME:key=value;key=value``; of several values, ``4/16/64``, the one of this place. Raises UsageError.

        A value is JSON where it can be.
        """
        name, _, rest = said.partition(":")
        if "=" not in rest or Path(said).exists():
            return cls(said, {})
        pairs = [pair.partition("=") for pair in rest.split(";")]
        if not name or not all(key and value for key, _, value in pairs):
            raise UsageError(f"A memory is given as {_ASKED}; it is '{said}'.")
        options: dict[str, Any] = {}
        for key, _, value in pairs:
            each = value.split("/")
            if len(each) not in (1, places):
                raise UsageError(f"{key} of '{said}' has {len(each)} values for {places} lengths of history.")
            options[key.replace("-", "_")] = _value(each[place if len(each) > 1 else 0])
        return cls(name, options)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def choices(said: str) -> list[str]:
    """The memories of ``A,B:key=value``, cut at commas outside brackets."""
    return [each.strip() for each in re.split(r",(?![^\[]*\])", said) if each.strip()]


# ---- intervals ----


def draws(count: int) -> Int[Tensor, "D N"]:
    """Which of ``count`` items each bootstrap sample has; always the same ones."""
    return torch.randint(count, (_DRAWS, count), generator=torch.Generator().manual_seed(0))


def interval(values: Float[Tensor, " D"]) -> tuple[float, float]:
    """The bounds between which 95 % of the samples' values lie."""
    low, high = torch.quantile(values.double(), torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high


# ---- means ----


def means(rows: Sequence[Row], *, over: str, metric: str) -> list[Row]:
    """The mean of a metric over what ``over`` tells apart, in which each counts once; one row for the rest of ``at``.

    Its bounds hold where the rows are independent and their intervals symmetric.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.metric == metric and over in row.at:
            groups.setdefault(json.dumps(_placed(row, over)), []).append(row)
    return [_mean(group, over) for group in groups.values() if len(group) > 1]


def _placed(row: Row, over: str) -> dict[str, Any]:
    return {name: value for name, value in row.at.items() if name not in (over, "answer_seconds")}


def _mean(group: Sequence[Row], over: str) -> Row:
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


def save(path: str | Path, rows: Sequence[Row], **arguments: Any) -> None:
    """Write rows as JSON, with the arguments that they came from, the versions and the machine."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {**arguments, "versions": versions(), "threads": torch.get_num_threads(), "machine": platform.machine()}
    text = json.dumps({"about": about, "rows": [row.flat() for row in rows]}, indent=1, ensure_ascii=False)
    file.write_text(f"{text}\n", encoding="utf-8")


def load(path: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """What ``save`` wrote: what the rows came from, and the rows. Raises InputError."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        return {**stored["about"]}, [Row.of({**row}) for row in stored["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' cannot be read as results: {error}.") from error


def versions(packages: Sequence[str] = ("byheart", "torch", "transformers")) -> dict[str, str]:
    """The installed release of each package."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "run from its source" if package == "byheart" else "absent"
    return found
