"""``byheart fork``: a copy of a memory under another name."""

from __future__ import annotations

from typing import Annotated

import typer

from byheart.cli import options, terminal
from byheart.cli.summary import summarise

New = Annotated[str, typer.Argument(help="Name of the copy.", show_default=False)]


def fork(name: options.Name, new: New, home: options.Home = None, as_json: options.AsJSON = False) -> None:
    """Copy a memory; later writes go into one of the two only."""
    from byheart.store.homes import open_store

    entry = open_store(home).fork(name, new)
    with terminal.acknowledging(f"'{name}' was copied to '{new}'"):
        if as_json:
            terminal.show_json(summarise(entry))
        else:
            terminal.say(f"Copied '{name}' to '{new}' ({terminal.size(entry.bytes)}).")
