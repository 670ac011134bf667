"""``byheart forget``: a memory is deleted, after a question."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from byheart.cli import options, terminal
from byheart.errors import UsageError

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def forget(name: options.Name, yes: Yes = False, home: options.Home = None, as_json: options.AsJSON = False) -> None:
    """Delete a memory for good."""
    from byheart.store.folder import Store

    store = Store(home)
    store.existing(name)
    if not yes and not sys.stdin.isatty():
        raise UsageError(f"To forget '{name}' without being asked, give --yes.")
    if not yes:
        typer.confirm(f"Forget '{name}' for good?", abort=True)
    target = store.forget(name)
    with terminal.acknowledging(f"'{name}' was forgotten"):
        if as_json:
            terminal.show_json({"name": name, "forgotten": True, **({"path": str(target)} if target else {})})
        else:
            terminal.say(f"Forgot '{name}'{f', and the file that it was a link to: {target}' if target else ''}.")
