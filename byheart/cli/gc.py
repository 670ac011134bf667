"""``byheart gc``: what belongs to no memory any more is deleted from a catalogue."""

from __future__ import annotations

from byheart.cli import options, terminal


def gc(home: options.Home = None, as_json: options.AsJSON = False) -> None:
    """Delete what expired memories and ended processes left in a catalogue."""
    from byheart.store.homes import require_catalogue

    swept = require_catalogue(home).memories.sweep()
    if as_json:
        counts = {"memories": swept.memories, "objects": swept.objects, "files": swept.files, "bytes": swept.bytes}
        terminal.show_json({**counts, "pending": swept.pending})
        return
    terminal.say(
        f"Deleted {swept.memories:,} expired memories, {swept.objects:,} states that no version has, and "
        f"{swept.files:,} other files: {terminal.size(swept.bytes)}."
    )
    if swept.pending:
        terminal.note(f"{swept.pending:,} states cannot be deleted now; run it again.")
