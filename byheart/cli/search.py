"""``byheart search``: a grid of settings of a method, the best first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from byheart.cli import evaluate, options, terminal
from byheart.errors import UsageError

_COLUMNS = ("method", "metric", "value", "95 %", "n", "clusters", "written in")
Data = Annotated[
    str, typer.Option("--data", metavar="PATH|NAME", help="Items to choose by; report others.", show_default=False)
]
_SEARCHED = options.group(
    grid=options.option(
        list[str] | None, None, "Values to try; repeatable. FastMem's 60 settings without it.", metavar="KEY=V1,V2"
    ),
    method=options.option(str, "last-ffn", "Method that is tuned."),
    task=options.option(str, "faithful", "What is measured; `byheart tasks` lists them."),
    metric=options.option(
        str,
        "accuracy",
        "Of the task; by several the settings are ordered by the sum of their ranks: rouge_l,bert_precision,factkb "
        "(the latter two were not run on their real models).",
        metavar="A,B",
    ),
)
_LIMIT = options.group(limit=options.option(int, 100, "Items at most; 0 is all."))


@options.takes(_SEARCHED, evaluate.TASK, _LIMIT, evaluate.RUN, options.WHERE)
def search(data: Data, as_json: options.AsJSON = False, **choices: Any) -> None:
    """Try a grid of settings on some items and list the best first; then measure it on other items."""
    from byheart.evaluation import grid_search
    from byheart.evaluation.tasks import build
    from byheart.model.loading import silence

    silence()
    choices["metric"] = [name.strip() for name in choices["metric"].split(",") if name.strip()]
    built = build(choices.pop("task"), **options.method_options(choices.pop("option")))
    grid, last = _parse_grid(choices.pop("grid")) or grid_search.GRID, choices["skip"] + choices["limit"]
    with terminal.progressing("searching", "items") as progress:
        rows = grid_search.search(
            built, data, grid=grid, progress=progress, live=evaluate.show_live(progress), **choices
        )
    evaluate.show_rows(rows, _COLUMNS, as_json=as_json)
    if not as_json:
        others = f"with --skip {last}" if choices["limit"] else "of another file"
        terminal.note(f"The best: --method '{rows[0].method}'. Measure it on other items, {others}.")


def _parse_grid(given: Sequence[str] | None) -> dict[str, list[str]]:
    """``key=v1,v2`` each. Raises UsageError."""
    pairs = [text.partition("=") for text in given or ()]
    for key, equals, values in pairs:
        if not key or not equals or not values:
            raise UsageError(f"--grid takes key=value,value, such as steps=10,20; it is '{key}{equals}{values}'.")
    return {key.replace("-", "_"): [value.strip() for value in values.split(",")] for key, _, values in pairs}
