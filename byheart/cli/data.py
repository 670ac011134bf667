"""``byheart data``: the data sets that results and recipes use, built from their public sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from byheart.cli import options, terminal
from byheart.errors import InputError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from byheart.data.building import Built
    from byheart.data.sets import DataSet

_ACTIONS = ("get", "list")
_ALL = "all"
Action = Annotated[str, typer.Argument(metavar="ACTION", help="get or list.", show_default=False)]
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Data sets to get, or all; `byheart data list` lists them."),
]
_GET = options.group(
    "Of get",
    to=options.option(Path, Path("."), "Folder for eval/, train/ and sources/.", metavar="DIR"),
    offline=options.option(bool, False, "Fetch nothing; say what would be, and where to put it.", "--offline"),
    accept=options.option(bool, False, "Take a file that is another than the known one.", "--accept"),
)


@options.takes(_GET)
def data(action: Action, names: Names = None, as_json: options.AsJSON = False, **choices: Any) -> None:
    """Get the data sets that results and recipes use, from their public sources; or list them."""
    from byheart.data.sets import data_sets, find_set

    if action not in _ACTIONS:
        raise UnknownNameError("action of `byheart data`", action, _ACTIONS)
    if action == "list":
        show_sets([find_set(name) for name in names or data_sets()], choices["to"], as_json=as_json)
        return
    if not names:
        raise UsageError(f"Say which data sets to get, or all; there are {', '.join(data_sets())}.")
    get([find_set(name) for name in (data_sets() if names == [_ALL] else names)], as_json=as_json, **choices)


def show_sets(sets: Sequence[DataSet], folder: Path, *, as_json: bool) -> None:
    """What there is, by which rule, and whether a build is what the published numbers were made from."""
    from byheart.data.building import SOURCES

    if as_json:
        terminal.show_json([_describe(data_set, folder / SOURCES) for data_set in sets])
        return
    table = Table("name", "parts", "published", "licence", "what", box=None, pad_edge=False)
    for data_set in sets:
        parts = ", ".join(f"{part.name} {part.records:,}" if part.records else part.name for part in data_set.parts)
        same = "the same" if all(part.sha256 for part in data_set.parts) else "others"
        table.add_row(data_set.name, parts, same, data_set.licence, data_set.title)
    terminal.show(table)


def get(sets: Sequence[DataSet], to: Path, *, offline: bool, accept: bool, as_json: bool) -> None:
    """Build data sets; one that cannot be built does not keep the others from it."""
    from byheart.data.building import build

    made: list[Built] = []
    failed: list[str] = []
    for data_set in sets:
        try:
            with terminal.progressing(f"getting {data_set.name}", "bytes or records") as progress:
                made += build(data_set, to, offline=offline, accept=accept, progress=progress)
        except InputError as error:
            if len(sets) == 1 and not offline:
                raise
            failed += [data_set.name]
            # What is missing is said of all together.
            if not offline:
                terminal.note(str(error))
    if as_json:
        terminal.show_json([asdict(built) for built in made])
    else:
        for built in made:
            terminal.say(_said(built))
    if failed:
        missing = _list_missing(sets, to) if offline else ""
        raise InputError(f"{len(failed)} of {len(sets)} could not be built: {', '.join(failed)}.{missing}")


def _said(built: Built) -> str:
    which = "those of the published numbers" if built.is_published else "not those of the published numbers"
    state = "built" if built.is_new else "was there"
    return f"{built.path} {state}: {built.records:,} records, {terminal.size(built.bytes)}, {which}."


def _list_missing(sets: Sequence[DataSet], to: Path) -> str:
    """What would be fetched, and where it is looked for when it came by other means."""
    from byheart.data.building import list_sources

    found = {place: name for data_set in sets for name, place, there in list_sources(data_set, to) if not there}
    wanted = "; ".join(f"{name}, looked for at '{place}'" for place, name in found.items())
    return f" These would be fetched: {wanted}." if wanted else ""


def _describe(data_set: DataSet, sources: Path) -> dict[str, Any]:
    return {
        "name": data_set.name,
        "title": data_set.title,
        "licence": data_set.licence,
        "note": data_set.note,
        "parts": [
            {
                "part": part.name,
                "records": part.records,
                "sha256": part.sha256,
                "rule": part.choice.rule,
                "from": [
                    {
                        "source": piece.source.name,
                        "rule": piece.choice.rule,
                        "pinned": piece.source.is_pinned,
                        "place": str(piece.source.place(sources)),
                    }
                    for piece in part.pieces
                ],
            }
            for part in data_set.parts
        ],
    }
