"""The memories of a server, as the commands use a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from byheart.errors import UsageError
from byheart.protocol.state import Header, Written
from byheart.serving.client.client import Client
from byheart.serving.client.remote_memory import RemoteMemory, path_of
from byheart.store.values import Deleted, Memory, Version


@dataclass(frozen=True)
class RemoteEntry:
    """One memory of a server: what its catalogue says. The header of the state is fetched when it is looked at."""

    client: Client
    memory: Memory

    @property
    def name(self) -> str:
        """Its name, or its id where it has none."""
        return self.memory.name or self.memory.id

    @property
    def path(self) -> str:
        """Its address."""
        return f"{self.client.url}{path_of(self.memory.id)}"

    @property
    def bytes(self) -> int:
        """Bytes of the newest version's file."""
        return self.memory.bytes

    @property
    def tokens(self) -> int:
        """Tokens of text written so far."""
        return self.memory.tokens

    @property
    def slots(self) -> int:
        """Slots that the model reads."""
        return self.memory.slots

    @cached_property
    def header(self) -> Header | None:
        """What the state belongs to; None where nothing was written. Raises StateError."""
        return self.client.memory(self.memory.id).read_header() if self.memory.version else None

    def summary(self) -> dict[str, Any]:
        """What a memory is and holds, as JSON has it."""
        memory = self.memory
        made = {"method": memory.method, "model": memory.model}
        counts = {"tokens": memory.tokens, "characters": memory.characters, "slots": memory.slots}
        where = {"name": self.name, "id": memory.id, "path": self.path, "bytes": memory.bytes}
        return {**where, **made, **counts, "version": memory.version}


@dataclass(frozen=True)
class OpenedRemotely:
    """A memory of a server, to be written and asked."""

    client: Client
    memory: RemoteMemory

    def write(self, text: str, *, source: str, progress: Callable[[int, int], None]) -> Written:
        """Put a text into the memory; it is durable once this returns."""
        return self.memory.write(text, source=source, progress=progress)

    def write_turn(self, question: str, answer: str) -> Written:
        """Put a turn of a conversation into the memory; it is durable once this returns."""
        return self.memory.write_turn(question, answer)

    def stream(self, question: str, *, stop: Sequence[str], **decoding: Any) -> Iterator[str]:
        """The answer about what was written, as it is made."""
        return self.memory.stream(question, stop=stop, **decoding)

    def reply(self, question: str, *, stop: Sequence[str], **decoding: Any) -> Iterator[str]:
        """The answer of a conversation, which may be its first."""
        return self.memory.reply(question, stop=stop, **decoding)

    def explain(self, answer: str) -> dict[str, Any]:
        """How long the answer is, and what made it."""
        made = self.memory.describe()
        options = {"model": made.model, "method": made.method, "options": dict(made.options)}
        return {"tokens": self.memory.answer_tokens, **options}

    def entry(self) -> RemoteEntry:
        """What is kept of it now."""
        return RemoteEntry(self.client, self.memory.describe())

    def measure_text(self, tokens: int) -> int | None:
        """Bytes that the text would have, which a server does not say."""
        return None


class RemoteStore:
    """The memories of a server, with the methods of ``CatalogueStore`` that commands use."""

    def __init__(self, url: str) -> None:
        self._client = Client(url)
        self.home = self._client.url

    def open(
        self,
        name: str,
        *,
        model: str | None,
        dtype: str,
        device: str,
        method: str | None = None,
        about: str = "",
        **options: Any,
    ) -> OpenedRemotely:
        """A memory; the first write makes it where it is missing. Raises UsageError, StoreError."""
        for what, value in {"dtype": dtype, "device": device}.items():
            if value != "auto":
                raise UsageError(f"A server has chosen its --{what}; leave out --{what} {value}.")
        memory = RemoteMemory(self._client, name, model=model, method=method, subject=about, options=options)
        return OpenedRemotely(self._client, memory)

    def require(self, name: str) -> None:
        """Raise MissingError where there is no such memory."""
        self.entry(name)

    def entry(self, name: str) -> RemoteEntry:
        """A memory. Raises MissingError."""
        return RemoteEntry(self._client, self._client.memory(name).describe())

    def entries(self) -> list[RemoteEntry]:
        """All memories, by name."""
        found = [RemoteEntry(self._client, memory) for memory in self._client.memories()]
        return sorted(found, key=lambda entry: entry.name)

    def fork(self, name: str, new: str) -> RemoteEntry:
        """A copy of a memory under a new name. Raises MissingError, ConflictError."""
        self._client.memory(name).fork(new)
        return self.entry(new)

    def forget(self, name: str) -> None:
        """Delete a memory with all its versions. Raises MissingError."""
        self._client.memory(name).forget()

    def versions(self, name: str) -> Iterator[Version]:
        """All versions of a memory, the newest first. Raises MissingError."""
        return self._client.memory(name).versions()

    def restore(self, name: str, number: int) -> Version:
        """Make an earlier version of a memory the newest once more. Raises MissingError."""
        return self._client.memory(name).restore(number)

    def erase(self, subject: str) -> Deleted:
        """Delete all memories about a subject."""
        return self._client.forget(subject=subject)
