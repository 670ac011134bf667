"""``byheart restore``: a memory is again what it was before."""

from __future__ import annotations

from typing import Annotated

import typer

from byheart.cli import options, terminal

Number = Annotated[int, typer.Argument(help="The version; `byheart versions NAME` lists them.", show_default=False)]


def restore(name: options.Name, number: Number, home: options.Home = None, as_json: options.AsJSON = False) -> None:
    """Make an earlier version of a memory the newest once more."""
    from byheart.store.homes import require_catalogue

    made = require_catalogue(home).mine.restore(name, number)
    with terminal.acknowledging(f"'{name}' was restored"):
        if as_json:
            terminal.show_json({"name": name, "restored": number, "version": made.number})
        else:
            terminal.say(f"'{name}' is as it was in version {number}; that is version {made.number} now.")
