"""The command ``byheart``: each command calls one function of the library, which is imported when it is needed.

Exit codes: 0 done; 1 an error, said in one line; 2 an argument that cannot be used; 130 interrupted. Whatever the
code, a memory is as its last save left it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from byheart.cli import comparing, evaluating, harness, importing, keeping, searching, training, using
from byheart.errors import ByheartError, UsageError

app = typer.Typer(
    help="Give a language model a memory: write text once, ask about it in any later conversation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "write": using.write,
    "ask": using.ask,
    "chat": using.chat,
    "list": keeping.list_all,
    "show": keeping.show,
    "fork": keeping.fork,
    "forget": keeping.forget,
    "methods": keeping.methods,
    "import": importing.import_published,
    "train": training.train,
    "lm-eval": harness.lm_eval,
    "evaluate": evaluating.evaluate,
    "compare": comparing.compare,
    "tasks": evaluating.tasks,
    "search": searching.search,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code; an error is one line on stderr."""
    try:
        app(arguments, prog_name="byheart")
    except (ByheartError, OSError) as error:
        print(f"byheart: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from error


def _version(asked: bool) -> bool:
    if asked:
        try:
            print(f"byheart {version('byheart')}")
        except PackageNotFoundError:
            print("byheart (not installed, run from its source)")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass
