"""``byheart forget``: a memory is deleted, after a question; or all memories about somebody."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from byheart.cli import options, terminal
from byheart.cli.places import open_store, open_versions
from byheart.errors import UsageError

Forgotten = Annotated[str | None, typer.Argument(help="Name of the memory.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Subject = Annotated[
    str | None,
    typer.Option(
        "--subject", help="Whom memories of a catalogue are about: all of theirs go, with forks and versions."
    ),
]


@options.takes(options.PLACE)
def forget(
    name: Forgotten = None, subject: Subject = None, yes: Yes = False, as_json: options.AsJSON = False, **place: Any
) -> None:
    """Delete a memory for good, or all memories about somebody."""
    if (name is None) == (subject is None):
        raise UsageError("Say what to forget: the NAME of a memory, or --subject; one of the two.")
    if subject is not None:
        _erase(subject, yes, place, as_json=as_json)
        return
    store = open_store(**place)
    store.require(name or "")
    _confirm(f"'{name}'", yes)
    target = store.forget(name or "")
    with terminal.acknowledging(f"'{name}' was forgotten"):
        if as_json:
            terminal.show_json({"name": name, "forgotten": True, **({"path": str(target)} if target else {})})
        else:
            terminal.say(f"Forgot '{name}'{f', and the file that it was a link to: {target}' if target else ''}.")


def _confirm(what: str, yes: bool) -> None:
    if not yes and not sys.stdin.isatty():
        raise UsageError(f"To forget {what} without being asked, give --yes.")
    if not yes:
        typer.confirm(f"Forget {what} for good?", abort=True)


def _erase(subject: str, yes: bool, place: dict[str, Any], *, as_json: bool) -> None:
    store = open_versions(**place)
    _confirm(f"all memories about '{subject}'", yes)
    gone = store.erase(subject)
    with terminal.acknowledging(f"memories about '{subject}' were forgotten"):
        if as_json:
            counts = {"memories": gone.memories, "versions": gone.versions, "bytes": gone.bytes}
            terminal.show_json({"subject": subject, "forgotten": True, **counts})
        else:
            terminal.say(
                f"Forgot {gone.memories:,} memories about '{subject}', with {gone.versions:,} versions in "
                f"{terminal.size(gone.bytes)}."
            )
