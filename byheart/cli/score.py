"""``byheart score``: answers that were made elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from byheart.cli import evaluate, options

_COLUMNS = ("task", "dataset", "conditions", "method", "metric", "value", "95 %", "n")
Task = Annotated[str, typer.Argument(metavar="TASK", help="faithful or summary, for one.", show_default=False)]
File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="JSON lines with input_index (0 is the first record), assigned_model and string, a list of one text.",
        show_default=False,
    ),
]
Data = Annotated[
    str, typer.Option("--data", metavar="PATH|NAME", help="The file that was asked about.", show_default=False)
]
TaskOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="Of the task; repeatable.")
]


def score(
    task: Task, predictions: File, data: Data, option: TaskOptions = None, as_json: options.AsJSON = False
) -> None:
    """Score answers that were made elsewhere, from a file of predictions."""
    from byheart.evaluation import predictions as files
    from byheart.evaluation.tasks import build
    from byheart.model.loading import silence

    silence()
    rows = files.score(build(task, **options.method_options(option)), predictions, data)
    evaluate.show_rows(rows, _COLUMNS, as_json=as_json)
