"""The best settings of a method, by trying all of a grid on items that the final numbers must not be made of.

FastMem (arXiv 2406.16069) tries 60 settings of the learning rate, the steps and the weight of the KL divergence, for
question answering on the very file that it then reports. Here a search takes the first ``limit`` items of a file, and
``evaluate`` with ``skip`` the ones after them, or another file.

It knows methods and tasks by name alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from byheart.errors import UnknownNameError, UsageError
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.method_spec import DECODING_OPTIONS
from byheart.evaluation.results import Result
from byheart.evaluation.task import Task
from byheart.methods import defaults, find
from byheart.protocol.grouping import group

GRID: Mapping[str, Sequence[str]] = {
    "learning_rate": ("1e-6", "3e-6", "1e-5", "3e-5"),
    "steps": ("10", "20", "50"),
    "kl": ("0.01", "0.03", "0.1", "0.3", "1"),
}
"""FastMem's own."""


def search(
    task: Task,
    data: str,
    *,
    method: str = "last-ffn",
    grid: Mapping[str, Sequence[str]] = GRID,
    metric: str | Sequence[str] = "accuracy",
    **options: Any,
) -> list[Result]:
    """The rows of each setting, the best first; its ``method`` is ready for ``byheart evaluate --method``.

    By several metrics, a setting is as good as the sum of its ranks, each being how many settings are better by one of
    them. FastMem's code lists a setting's ROUGE-L, FactKB and BERT-P, and leaves the choice to the reader.

    Args:
        grid: option of the method or of ``Decoding`` -> its values, as they are typed.
        metric: of the task, one or several. Of equal settings, the earlier in the grid comes first.
        options: as for ``evaluate``; 100 items unless ``limit`` says otherwise. Settings that are done in the folder
            ``out`` are not tried again.

    Raises what ``evaluate`` raises, and UsageError.
    """
    metrics = [metric] if isinstance(metric, str) else list(metric)
    _require_measured(task, metrics)
    rows = evaluate(task, data, settings(method, grid), **{"limit": 100, **options})
    for name in metrics:
        if all(row.metric != name for row in rows):
            raise UnknownNameError(f"metric of {task.name}", name, {row.metric for row in rows})
    found = sorted((row for row in rows if row.metric in metrics), key=lambda row: metrics.index(row.metric))
    ranks = _sum_ranks(found)
    return [row for spec in sorted(ranks, key=ranks.__getitem__) for row in found if row.method == spec]


def _require_measured(task: Task, metrics: Sequence[str]) -> None:
    """Raise UsageError for no metric, and for one that the task is not asked to measure."""
    if not metrics:
        raise UsageError("There is no metric to choose settings by; give at least one.")
    for name in metrics:
        option = task.optional_metrics.get(name)
        if option and not task.options()[option]:
            raise UsageError(f"{task.name} measures {name} only with {option}=true; give -o {option}=true as well.")


def _sum_ranks(rows: Sequence[Result]) -> dict[str, int]:
    """By setting, in the order of the grid, how many settings are better, summed over metrics and conditions."""
    ranks = dict.fromkeys((row.method for row in rows), 0)
    for members in group(rows, lambda row: (row.metric, json.dumps(row.conditions))).values():
        scores = [row.value if row.higher_is_better else -row.value for row in members]
        for row, score in zip(members, scores, strict=True):
            ranks[row.method] += sum(other > score for other in scores)
    return ranks


def settings(method: str, grid: Mapping[str, Sequence[str]]) -> list[str]:
    """All combinations, as ``NAME:key=value;key=value``. Raises UnknownNameError or UsageError."""
    known = {*defaults(find(method)), *DECODING_OPTIONS}
    for key, values in grid.items():
        if key not in known:
            raise UnknownNameError(f"option of {method}", key, known)
        if not values or not all(values):
            raise UsageError(f"{key} has no values to try; give some, such as {key}=1,2.")
    return [
        f"{method}:{';'.join(f'{key}={value}' for key, value in zip(grid, point, strict=True))}"
        for point in product(*grid.values())
    ]
