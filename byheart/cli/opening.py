"""Opening a memory from the options of a command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from byheart.cli import options, terminal
from byheart.cli.places import find_server

if TYPE_CHECKING:
    from byheart.protocol.state import Written
    from byheart.serving.client.remote_store import OpenedRemotely
    from byheart.session.session import Session
    from byheart.store.folder import Entry
    from byheart.store.homes import AnyStore

    AnyMemory: TypeAlias = "OpenedHere | OpenedRemotely"


def open_memory(
    name: str,
    *,
    home: Path | None,
    server: str | None,
    option: Sequence[str] | None = None,
    new: bool = False,
    about: str = "",
    **choices: Any,
) -> AnyMemory:
    """A memory to be written and asked, without the messages that transformers prints on the way.

    Args:
        about: whom a new memory is about.
    """
    method_options = options.method_options(option)
    remote = find_server(home, server)
    if remote is not None:
        return remote.open(name, about=about, **choices, **method_options)
    with terminal.progressing(f"opening {name}", "texts") as progress:
        from byheart.model.loading import silence
        from byheart.store.homes import open_store, require_catalogue

        silence()
        store = require_catalogue(home, about=about) if about else open_store(home)
        return OpenedHere(name, store, store.open(name, new=new, progress=progress, **choices, **method_options))


@dataclass(frozen=True)
class OpenedHere:
    """A memory of a folder, over a model that is open in this process."""

    name: str
    store: AnyStore
    session: Session

    def write(self, text: str, *, source: str, progress: terminal.Activity) -> Written:
        """Put a text into the memory; it is on disk once this returns."""
        with self.store.updating(self.name, self.session):
            return self.session.write(text, source=source, progress=progress)

    def write_turn(self, question: str, answer: str) -> Written:
        """Put a turn of a conversation into the memory; it is on disk once this returns."""
        with self.store.updating(self.name, self.session):
            return self.session.write_turn(question, answer)

    def stream(self, question: str, *, stop: Sequence[str], **decoding: Any) -> Iterator[str]:
        """The answer about what was written, as it is made."""
        return self.session.stream(question, stop=stop, **decoding)

    def reply(self, question: str, *, stop: Sequence[str], **decoding: Any) -> Iterator[str]:
        """The answer of a conversation, which may be its first."""
        return self.session.reply(question, stop=stop, **decoding)

    def explain(self, answer: str) -> dict[str, Any]:
        """How long the answer is, and what made it."""
        header = self.session.header
        made = {"model": header.model, "method": header.method, "options": header.options, "dtype": header.dtype}
        return {"tokens": len(self.session.encoder.continuation(answer)), **made}

    def entry(self) -> Entry:
        """What is kept of it now."""
        return self.store.entry(self.name)

    def measure_text(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens of text, of which the memory keeps some."""
        return tokens * self.session.backbone.slot_bytes
