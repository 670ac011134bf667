"""``byheart migrate``: a folder of files becomes a catalogue."""

from __future__ import annotations

from byheart.cli import options, terminal
from byheart.errors import StoreError


def migrate(home: options.Home = None, as_json: options.AsJSON = False) -> None:
    """Take memories that are one file each over into a catalogue, with versions from then on."""
    from byheart.store import homes

    with terminal.progressing("taking memories over"):
        found = list(homes.migrate(home))
    left = [memory for memory in found if memory.problem]
    if as_json:
        problems = {memory.name: memory.problem for memory in left}
        terminal.show_json({"migrated": [memory.name for memory in found if not memory.problem], "left": problems})
    else:
        for memory in left:
            terminal.note(f"'{memory.name}' was left: {memory.problem}")
        terminal.say(f"Memories taken over: {len(found) - len(left):,}.")
    if left:
        raise StoreError(f"{len(left):,} memories stay as they are; mend them and run `byheart migrate` again.")
