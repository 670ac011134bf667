"""``byheart lm-eval``: tasks of lm-evaluation-harness on a model that reads a memory first."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from byheart.cli import options, terminal
from byheart.cli.texts import read_text
from byheart.errors import UsageError

if TYPE_CHECKING:
    from byheart.evaluation.results import Result
    from byheart.session.session import Session

_COLUMNS = ("task", "method", "metric", "value", "95 %", "documents", "keeps", "written in")
Tasks = Annotated[
    str, typer.Option("--tasks", metavar="A,B", help="Tasks, groups, patterns or .yaml files.", show_default=False)
]
Write = Annotated[
    list[str] | None,
    typer.Option("--write", metavar="FILE", help="Text that the memory reads before every request; repeatable."),
]
Out = Annotated[str | None, typer.Option("--out", metavar="FILE", help="Also write rows, arguments and versions here.")]
_MEMORY = {
    **options.group(
        model=options.option(
            str | None, None, "Alias, hub id, folder or .gguf file; else smollm2, or that of --state.", "--model", "-m"
        ),
        method=options.option(
            str | None,
            None,
            "Method with its options, or a folder of a trained one; else full where texts are written, or nothing.",
            metavar="NAME[:KEY=VALUE;KEY=VALUE]",
        ),
        state=options.option(str | None, None, "Use a memory that `byheart write` made.", metavar="NAME|PATH"),
    ),
    **options.WHERE,
    "home": (options.Home, None),
}
_SETTINGS = options.group(
    limit=options.option(int | None, None, "Documents of each task, at most.", min=1),
    fewshot=options.option(
        int | None, None, "Solved examples; else as many as the task wants.", "--num-fewshot", min=0
    ),
    include=options.option(Path | None, None, "Folder with tasks of your own.", "--include-path", metavar="DIR"),
    batch=options.option(int, 8, "Requests at once.", min=1),
)


@options.takes(_MEMORY, _SETTINGS)
def lm_eval(
    tasks: Tasks, write: Write = None, out: Out = None, as_json: options.AsJSON = False, **choices: Any
) -> None:
    """Run tasks of lm-evaluation-harness on a model that reads a memory first."""
    texts = [read_text(path) for path in write or ()]
    memory, settings = ({name: choices[name] for name in group} for group in (_MEMORY, _SETTINGS))
    rows = _measure([name.strip() for name in tasks.split(",") if name.strip()], texts, memory, settings)
    if out is not None:
        _save(out, rows, tasks=tasks, write=write or [], **choices)
    if as_json:
        terminal.show_json([row.flat() for row in rows])
    else:
        terminal.show(_lay_out(rows))


def _measure(
    tasks: Sequence[str], texts: Sequence[str], memory: dict[str, Any], settings: dict[str, Any]
) -> list[Result]:
    with terminal.progressing("opening the model"):
        from byheart.evaluation.lm_eval import measure
        from byheart.model.loading import silence

        silence()
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        session = _open("full" if texts else "nothing", **memory)
    shown = memory["method"] or memory["state"] or session.method.name
    return measure(session, tasks, method=shown, texts=texts, **settings)


def _open(
    default: str, *, model: str | None, method: str | None, state: str | None, home: Path | None, **where: Any
) -> Session:
    """A new session, or the one of a state. Raises UsageError where both are asked for."""
    from byheart.evaluation.method_spec import MethodSpec
    from byheart.model.loading import DEFAULT
    from byheart.session.opening import load, open_state
    from byheart.store.homes import open_store

    if state is None:
        spec = MethodSpec.of(method or default, 0, 1)
        return load(model or DEFAULT, method=spec.name, **where, **spec.options)
    if method is not None:
        raise UsageError(f"--state '{state}' has a memory of its own; leave out --method '{method}'.")
    if Path(state).expanduser().is_file():
        return open_state(Path(state).expanduser(), model=model or "", **where)
    return open_store(home).open(state, model=model, **where)


def _save(out: str, rows: Sequence[Result], **arguments: Any) -> None:
    from byheart.evaluation.results import save
    from byheart.provenance import versions

    plain = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
    save(out, rows, **plain, lm_eval=versions(["lm_eval"])["lm_eval"])


def _lay_out(rows: Sequence[Result]) -> Table:
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for row in rows:
        interval = f"{row.low:.3f} to {row.high:.3f}" if row.has_interval else "-"
        costs = (terminal.size(row.bytes), f"{row.seconds:,.1f} s")
        table.add_row(row.dataset, row.method, row.metric, f"{row.value:.3f}", interval, f"{row.n:,}", *costs)
    return table
