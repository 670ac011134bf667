"""The command ``byheart``: one module per command, imported when the command is used.

Exit codes: 0 done; 1 an error, shown in one line; 2 an argument that cannot be used; 130 interrupted. Whatever the
code, a memory is as its last save left it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from byheart.cli import streams, threads
from byheart.cli.printable import error_line
from byheart.errors import ByheartError, UsageError

COMMANDS = {
    "Use a memory": {
        "write": "Write text into a memory; a new name makes a new one.",
        "ask": "Ask a memory a question.",
        "chat": "Talk with a memory that keeps every turn; a new name makes a new one.",
        "serve": "Serve models and memories over HTTP, to any OpenAI client and as a web page.",
    },
    "Own your memories": {
        "list": "List all memories.",
        "show": "Show what a memory is made of and what was written into it.",
        "fork": "Copy a memory; later writes go into one of the two only.",
        "forget": "Delete a memory for good, or all memories about somebody.",
        "versions": "List the versions of a memory, the newest first.",
        "restore": "Make an earlier version of a memory the newest once more.",
        "migrate": "Take memories that are one file each over into a catalogue, with versions from then on.",
        "gc": "Delete what expired memories and ended processes left in a catalogue.",
    },
    "Train and import": {
        "train": "Train a method on text: its learned parts alone, the model stays as it is.",
        "calibrate": "Measure a model once, so that its memories can be compact.",
        "import": "Read a released checkpoint and write it in byheart's own format.",
    },
    "Measure": {
        "evaluate": "Measure methods on tasks: what each answers, what it keeps, what it costs.",
        "score": "Score answers that were made elsewhere, from a file of predictions.",
        "tasks": "List the tasks that `byheart evaluate` knows.",
        "data": "Get the data sets that results and recipes use, from their public sources; or list them.",
        "search": "Try a grid of settings on some items and list the best first; then measure it on other items.",
        "trace": "Record what one long text takes to write and to ask about, step by step.",
        "compare": "Lay runs side by side on a page: what memories are worth, keep and take.",
        "lm-eval": "Run tasks of lm-evaluation-harness on a model that reads a memory first.",
    },
    "About": {
        "methods": "List the methods that --method takes, with their options.",
    },
}
"""Panel -> command -> the first line of its help. Listing the commands imports none of them."""
# Where a command is not the function of its name in the module of its name.
_ELSEWHERE = {"list": "list.list_memories", "import": "import_.import_checkpoint"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; an error is one line on stderr."""
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        streams.prepare()
        threads.prepare(os.environ, serves=typed[:1] == ["serve"])
        _require_text(typed)
        code = build_app(typed[:1])(typed, prog_name="byheart", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        line, code = _explain(error, typed)
        if code is None:
            raise
        _fail(line, code, error)
    if code == 130:
        _fail("Interrupted.", code)
    raise SystemExit(code or 0)


def _require_text(typed: Sequence[str]) -> None:
    """Raise UsageError for what no system can pass on, and no file can be called."""
    for argument in typed:
        if "\0" in argument:
            raise UsageError(f"An argument must not hold the character NUL; it is {argument!r}.")


def _explain(error: Exception, typed: Sequence[str]) -> tuple[str, int | None]:
    """The line and the exit code of an error; no code for a mistake in byheart itself."""
    if isinstance(error, ByheartError | OSError):
        return str(error), 2 if isinstance(error, UsageError) else 1
    if isinstance(error, MemoryError):
        return "There is not enough memory for this; give less at once, or smaller options.", 1
    if isinstance(error, typer.Abort):
        return "Nothing was done.", 1
    if isinstance(error, typer.TyperException):
        command = " ".join(["byheart", *(name for name in typed[:1] if any(name in few for few in COMMANDS.values()))])
        message = error.format_message()
        end = "" if message.endswith((".", "?")) else "."
        # Without a command the help was shown, which is the message.
        return f"{message}{end} `{command} --help` says more." if message else "", error.exit_code

    from byheart.provenance import find_outdated

    outdated = find_outdated()
    return outdated, 1 if outdated else None


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


def _fail(line: str, code: int, error: Exception | None = None) -> NoReturn:
    streams.drop_output()
    if line:
        with suppress(OSError):
            print(f"byheart: {error_line(line)}", file=sys.stderr, flush=True)
    raise SystemExit(code) from error


def _show_version(asked: bool) -> bool:
    if asked:
        from byheart.provenance import versions

        print(f"byheart {versions()['byheart']}", flush=True)
        raise typer.Exit
    return asked


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
