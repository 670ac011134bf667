"""``byheart fork``: a copy of a memory under another name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from byheart.cli import options, terminal
from byheart.cli.places import open_store

New = Annotated[str, typer.Argument(help="Name of the copy.", show_default=False)]


@options.takes(options.PLACE)
def fork(name: options.Name, new: New, as_json: options.AsJSON = False, **place: Any) -> None:
    """Copy a memory; later writes go into one of the two only."""
    entry = open_store(**place).fork(name, new)
    with terminal.acknowledging(f"'{name}' was copied to '{new}'"):
        if as_json:
            terminal.show_json(entry.summary())
        else:
            terminal.say(f"Copied '{name}' to '{new}' ({terminal.size(entry.bytes)}).")
