"""Which rows of a result file tell no method from another: those where even the whole text is no better than none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from byheart.evaluation.metrics import DIFFERENCE, MEAN
from byheart.evaluation.results import Result
from byheart.protocol.grouping import group

FLOOR, CEILING = "nothing", "full"


def floor_notes(rows: Sequence[Result]) -> Iterator[str]:
    """A sentence for each data set in which ``full``, or without it the best method, is not above ``nothing``.

    Told by the first metric of which more is better, by its mean where there is one. Not above is whose interval
    reaches into that of ``nothing``, unless their difference on the same items excludes 0; without intervals, whose
    value does.
    """
    for dataset, members in group(rows, lambda row: row.dataset).items():
        metric = _metric(members)
        places = group(members, lambda row: tuple(row.conditions.items()))
        found = [(_at_floor(there, metric), dict(place)) for place, there in places.items()]
        for best, at in group([pair for pair in found if pair[0]], lambda pair: pair[0]).items():
            yield _sentence(dataset, metric, best, [place for _, place in at])


def _metric(rows: Sequence[Result]) -> str:
    """The metric that is told by."""
    metrics = list(dict.fromkeys(row.metric for row in rows if row.higher_is_better))
    return next((metric for metric in metrics if metric == f"{MEAN}{metrics[0]}"), metrics[0]) if metrics else ""


def _at_floor(rows: Sequence[Result], metric: str) -> str:
    """The method that should be above the floor and is not, or nothing; rows are those of the same conditions."""
    own = {row.method: row for row in rows if row.metric == metric}
    floors = [name for name in own if _base(name) == FLOOR]
    others = [name for name in own if _base(name) != FLOOR]
    if not floors or not others:
        return ""
    # An answer may be cut at another length; with other options it is no longer the whole text.
    ceilings = [name for name in others if name.partition(":max_tokens")[0] == CEILING]
    best = max(ceilings or others, key=lambda name: own[name].value)
    floor = own[floors[0]]
    paired = {row.method: row for row in rows if row.metric == f"{metric}{DIFFERENCE}"}
    apart = [paired[name] for name in (best, floor.method) if name in paired]
    # Differences from a third method are there for both, and say nothing here.
    if len(apart) == 1 and apart[0].has_interval and not apart[0].low <= 0 <= apart[0].high:
        return ""
    return best if own[best].low <= floor.high else ""


def _base(method: str) -> str:
    return method.partition(":")[0]


def _sentence(dataset: str, metric: str, best: str, places: Sequence[Mapping[str, Any]]) -> str:
    named = [name for name in places[0] if any(place != places[0] for place in places) or len(places) == 1]
    at = "; ".join(f"{name.replace('_', ' ')} {', '.join(_values(places, name))}" for name in named)
    where = f", {at}" if at else ""
    who = f"even `{best}`" if _base(best) == CEILING else f"`{best}`, the best that was measured,"
    which = (
        f"**At the floor ({dataset}{where}):** {who} is not shown to be above `{FLOOR}` by {metric.replace('_', ' ')}"
    )
    return f"{which}, so these rows tell no method from another."


def _values(places: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return list(dict.fromkeys(str(place[name]) for place in places))
