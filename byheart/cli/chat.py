"""``byheart chat``: a conversation whose turns are all written into a memory."""

from __future__ import annotations

from typing import Any

from byheart.cli import options, terminal
from byheart.cli.opening import open_memory


@options.takes(options.DECODING, options.METHOD, options.OPENING)
def chat(name: options.Name, stop: options.Stop = None, **choices: Any) -> None:
    """Talk with a memory that keeps every turn; a new name makes a new one."""
    decoding = options.take_decoding(choices)
    store, session = open_memory(name, new=True, **choices)
    terminal.note("Ctrl-C ends an answer; Ctrl-D or /exit leaves.")
    for question in terminal.read_lines("> "):
        answer = terminal.stream_answer(session.reply(question, stop=stop or (), **decoding), endable=True)
        with store.updating(name, session):
            entry = session.write_turn(question, answer)
        tokens, size = session.header.tokens, terminal.size(store.entry(name).bytes)
        slots, whole = session.method.prefix_slots(session.state), terminal.size(tokens * session.backbone.slot_bytes)
        terminal.note(
            f"{entry.tokens:,} tokens more: {tokens:,} tokens of conversation in {size}, {slots:,} slots; "
            f"the whole text has {whole}"
        )
