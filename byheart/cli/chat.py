"""``byheart chat``: a conversation whose turns are all written into a memory."""

from __future__ import annotations

from typing import Any

from byheart.cli import options, terminal
from byheart.cli.opening import open_memory


@options.takes(options.DECODING, options.METHOD, options.OPENING)
def chat(name: options.Name, stop: options.Stop = None, **choices: Any) -> None:
    """Talk with a memory that keeps every turn; a new name makes a new one."""
    decoding = options.take_decoding(choices)
    memory = open_memory(name, new=True, **choices)
    terminal.note("Ctrl-C ends an answer; Ctrl-D or /exit leaves.")
    for question in terminal.read_lines("> "):
        answer = terminal.stream_answer(memory.reply(question, stop=stop or (), **decoding), endable=True)
        entry = memory.write_turn(question, answer)
        kept = memory.entry()
        whole = memory.measure_text(kept.tokens)
        terminal.note(
            f"{entry.tokens:,} tokens more: {kept.tokens:,} tokens of conversation in {terminal.size(kept.bytes)}, "
            f"{kept.slots:,} slots{f'; the whole text has {terminal.size(whole)}' if whole else ''}"
        )
