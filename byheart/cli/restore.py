"""``byheart restore``: a memory is again what it was before."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from byheart.cli import options, terminal
from byheart.cli.places import open_versions

Number = Annotated[int, typer.Argument(help="The version; `byheart versions NAME` lists them.", show_default=False)]


@options.takes(options.PLACE)
def restore(name: options.Name, number: Number, as_json: options.AsJSON = False, **place: Any) -> None:
    """Make an earlier version of a memory the newest once more."""
    made = open_versions(**place).restore(name, number)
    with terminal.acknowledging(f"'{name}' was restored"):
        if as_json:
            terminal.show_json({"name": name, "restored": number, "version": made.number})
        else:
            terminal.say(f"'{name}' is as it was in version {number}; that is version {made.number} now.")
