"""``byheart write``: text from files or standard input goes into a memory."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from byheart.cli import options, terminal
from byheart.cli.opening import open_memory
from byheart.cli.texts import STDIN, read_text

if TYPE_CHECKING:
    from byheart.cli.places import AnyEntry
    from byheart.protocol.state import Written

Files = Annotated[
    list[str] | None,
    typer.Argument(help="UTF-8 text files, in order; '-' or none is standard input.", show_default=False),
]


_FACT = options.group(
    target=options.option(
        str, "", "The text says one fact: the words of it that are to be known; for rome, memit, ike."
    ),
    subject=options.option(str, "", "The words that the fact is about, before the target."),
)


_ABOUT = options.group(
    about=options.option(
        str,
        "",
        "Whom a new memory of a catalogue or server is about: `byheart forget --subject` deletes all of theirs.",
    )
)


@options.takes(_ABOUT, _FACT, options.METHOD, options.OPENING)
def write(name: options.Name, files: Files = None, as_json: options.AsJSON = False, **choices: Any) -> None:
    """Write text into a memory; a new name makes a new one."""
    subject, target = choices.pop("subject"), choices.pop("target")
    texts = [(source, _marked(read_text(source), subject, target)) for source in files or [STDIN]]
    memory = open_memory(name, new=True, **choices)
    for source, text in texts:
        start = time.monotonic()
        shown = "standard input" if source == STDIN else _readable(Path(source).name)
        with terminal.progressing(f"writing {shown}") as progress:
            entry = memory.write(text, source=shown, progress=progress)
        with terminal.acknowledging(f"{shown} was written into '{name}'"):
            _acknowledge(memory.entry(), name, entry, time.monotonic() - start, as_json=as_json)


def _marked(text: str, subject: str, target: str) -> str:
    """The text, as a fact where something is to be known of it."""
    if not (subject or target):
        return text
    from byheart.text.fact_text import FactText

    return FactText(text, subject=subject, target=target)


def _readable(file_name: str) -> str:
    r"""A name as text: bytes that are not UTF-8 are written out, as in ``\xff.txt``."""
    return os.fsencode(file_name).decode("utf-8", "backslashreplace")


def _acknowledge(memory: AnyEntry, name: str, written: Written, seconds: float, *, as_json: bool) -> None:
    """Say what was written, once it is on disk."""
    total = memory.tokens
    if as_json:
        entry = {"name": name, **asdict(written), "seconds": round(seconds, 3)}
        terminal.show_json({**entry, "total_tokens": total, "bytes": memory.bytes, "path": str(memory.path)})
        return
    terminal.say(
        f"Wrote {written.source}: {written.tokens:,} tokens in {seconds:.1f} s. "
        f"'{name}' now keeps {total:,} tokens in {terminal.size(memory.bytes)}."
    )
