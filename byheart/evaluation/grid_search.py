"""The best settings of a method, by trying all of a grid on items that the final numbers must not be made of.

FastMem (arXiv 2406.16069) tries 60 settings of the learning rate, the steps and the weight of the KL divergence, for
question answering on the very file that it then reports. Here a search takes the first ``limit`` items of a file, and
``evaluate`` with ``skip`` the ones after them, or another file.

It knows methods and tasks by name alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from byheart.errors import UnknownNameError, UsageError
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.method_spec import DECODING_OPTIONS
from byheart.evaluation.results import Result
from byheart.evaluation.task import Task
from byheart.methods import defaults, find

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
    metric: str = "accuracy",
    **options: Any,
) -> list[Result]:
    """A row for each setting, the best first; its ``method`` is ready for ``byheart evaluate --method``.

    Args:
        grid: option of the method or of ``Decoding`` -> its values, as they are typed.
        metric: of the task. Of equal settings, the earlier in the grid comes first.
        options: as for ``evaluate``; 100 items unless ``limit`` says otherwise. Settings that are done in the folder
            ``out`` are not tried again.

    Raises what ``evaluate`` raises, and UsageError.
    """
    rows = evaluate(task, data, settings(method, grid), **{"limit": 100, **options})
    if not (found := [row for row in rows if row.metric == metric]):
        raise UnknownNameError(f"metric of {task.name}", metric, {row.metric for row in rows})
    return sorted(found, key=lambda row: -row.value if row.higher_is_better else row.value)


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
