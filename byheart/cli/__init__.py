"""The command ``byheart``: one module per command, imported when the command is used.

Exit codes: 0 done; 1 an error, shown in one line; 2 an argument that cannot be used; 130 interrupted. Whatever the
code, a memory is as its last save left it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from byheart.cli import threads
from byheart.errors import ByheartError, UsageError

COMMANDS = {
    "Use a memory": {
        "write": "Write text into a memory; a new name makes a new one.",
        "ask": "Ask a memory a question.",
        "chat": "Talk with a memory that keeps every turn; a new name makes a new one.",
    },
    "Own your memories": {
        "list": "List all memories.",
        "show": "Show what a memory is made of and what was written into it.",
        "fork": "Copy a memory; later writes go into one of the two only.",
        "forget": "Delete a memory for good.",
    },
    "Train and import": {
        "train": "Train a method on text: its learned parts alone, the model stays as it is.",
        "import": "Read a released checkpoint and write it in byheart's own format.",
    },
    "Measure": {
        "evaluate": "Measure methods on tasks: what each answers, what it keeps, what it costs.",
        "tasks": "List the tasks that `byheart evaluate` knows.",
        "search": "Try a grid of settings on some items and list the best first; then measure it on other items.",
        "compare": "Lay runs side by side on a page: what memories are worth, keep and take.",
        "lm-eval": "Run tasks of lm-evaluation-harness on a model that reads a memory first.",
    },
    "About": {
        "methods": "List the methods that --method takes, with their options.",
    },
}
"""Panel -> command -> the first line of its help. Listing the commands imports none of them."""
# Where a command is not the function of its name in the module of its name.
_ELSEWHERE = {
    "list": "list.list_memories",
    "import": "import_.import_checkpoint",
    "evaluate": "evaluating.evaluate",
    "tasks": "evaluating.tasks",
    "search": "searching.search",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; an error is one line on stderr."""
    threads.prepare(os.environ)
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        build_app(typed[:1])(typed, prog_name="byheart")
    except (ByheartError, OSError) as error:
        _fail(" ".join(str(error).split()), 2 if isinstance(error, UsageError) else 1, error)
    except Exception as error:
        from byheart.provenance import find_outdated

        outdated = find_outdated()
        if not outdated:
            raise
        _fail(outdated, 1, error)


def build_app(used: Collection[str]) -> typer.Typer:
    """The application, with the commands ``used`` ready to run and the others ready to be listed."""
    app = typer.Typer(
        help="Give a language model a memory: write text once, ask about it in any later conversation.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for panel, commands in COMMANDS.items():
        for name, summary in commands.items():
            command = _find(name) if name in used else _listed
            app.command(name, help=summary, rich_help_panel=panel)(command)
    return app


def _find(name: str) -> Callable[..., None]:
    word = name.replace("-", "_")
    module, _, function = _ELSEWHERE.get(name, f"{word}.{word}").partition(".")
    command: Callable[..., None] = getattr(import_module(f"{__name__}.{module}"), function)
    return command


def _listed() -> None:
    """Stands for a command that is only listed."""


def _fail(line: str, code: int, error: Exception) -> NoReturn:
    print(f"byheart: {line}", file=sys.stderr)
    raise SystemExit(code) from error


def _show_version(asked: bool) -> bool:
    if asked:
        from byheart.provenance import versions

        print(f"byheart {versions()['byheart']}")
        raise typer.Exit
    return asked


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
