"""One memory of a server, asked and written over HTTP."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from typing_extensions import Unpack

from byheart.errors import (
    ByheartError,
    ConflictError,
    CorruptStateError,
    InputError,
    MissingError,
    UnknownNameError,
    UsageError,
)
from byheart.files import replacing
from byheart.protocol.state import Header, Written
from byheart.serving.client.received import (
    take_answer,
    take_count,
    take_deleted,
    take_header,
    take_memory,
    take_version,
    take_written,
)
from byheart.serving.client.refusals import told
from byheart.store.checks import is_id, require_name
from byheart.store.values import Memory, Version, require_gone, require_subject

if TYPE_CHECKING:
    from byheart.generation.decoding import DecodingOptions
    from byheart.serving.client.client import Client

Progress: TypeAlias = Callable[[int, int], None]
Events: TypeAlias = Generator[dict[str, Any], None, None]
_DECODING = ("max_tokens", "temperature", "top_p", "top_k", "seed")
_LOCAL_DECODING = ("contrast", "context_aware", "dola")
_MAX_TOKENS = 256
"""Of an answer, as in the library."""
_LONGEST_HEADER = 100_000_000
"""Bytes; no safetensors file has more."""


class RemoteMemory:
    """One memory of a server: write texts, ask about them, fork, restore, forget. ``Client.memory`` makes it."""

    def __init__(
        self, client: Client, name: str, *, model: str | None, method: str | None, subject: str, options: dict[str, Any]
    ) -> None:
        self.name = name
        self.answer_tokens = 0
        """How many tokens the last answer had."""
        self._client, self._path = client, path_of(name)
        self._send = client.sender
        self._chosen: dict[str, Any] = {"model": model, "method": method, "options": options, "subject": subject}
        self._is_known = False

    def describe(self) -> Memory:
        """What it is: version, slots, tokens, bytes. Raises MissingError."""
        return take_memory(self._send.call("GET", self._path, safe=True))

    # ---- writing ----

    def write(self, text: str, *, source: str = "text", progress: Progress | None = None) -> Written:
        """Put ``text`` into the memory; it is durable once this returns.

        Args:
            source: where the text came from, for the record.
            progress: called with the tokens done and the tokens in all.

        Raises InputError; UsageError where the memory was made with another method, model or options. The memory then
        stays as it was.
        """
        if type(text) is not str:
            raise UsageError("A server takes texts, not facts that are marked; write the fact on its own machine.")
        if not text.strip():
            raise InputError("There is nothing to write: the text is empty.")
        return self._write({"text": text, "source": source}, progress)

    def write_turn(self, question: str, answer: str) -> Written:
        """Put a turn of a conversation into the memory: what was asked and what was answered."""
        turn = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return self._write({"messages": turn}, None)

    def _write(self, body: dict[str, Any], progress: Progress | None) -> Written:
        made = None if self._is_known else self._find_or_make()
        # One that is sent again, because its answer was lost, is not written twice.
        headers = {"idempotency-key": secrets.token_hex(16)}
        try:
            written = self._send.retrying(lambda: self._write_once(body, headers, progress), safe=True)
        except (ByheartError, KeyboardInterrupt):
            if made is not None:
                self._unmake(made)
            raise
        self._is_known = True
        return written

    def _write_once(self, body: dict[str, Any], headers: dict[str, str], progress: Progress | None) -> Written:
        last: dict[str, Any] = {}
        for last in self._send.events(f"{self._path}/writes", {**body, "stream": True}, headers=headers):
            if progress is not None and "done" in last:
                progress(take_count(last, "done"), take_count(last, "total"))
        return take_written(last)

    def _find_or_make(self) -> str | None:
        """Make the memory where it is missing, and then give its id. Raises UsageError where it was made otherwise."""
        try:
            self._require_agreement(self.describe())
        except MissingError:
            if is_id(self.name):
                raise
            body = {key: value for key, value in self._chosen.items() if value}
            try:
                return str(self._send.call("POST", "/v1/memories", {"name": self.name, **body})["id"])
            except ConflictError:
                # Somebody else has made it meanwhile.
                self._require_agreement(self.describe())
        return None

    def _require_agreement(self, memory: Memory) -> None:
        """Raise UsageError for a choice that is not how the memory was made."""
        recorded = {"model": memory.model, "method": memory.method, **memory.options}
        require_subject(memory, self._chosen["subject"])
        chosen = {"model": self._chosen["model"], "method": self._chosen["method"], **self._chosen["options"]}
        for choice, value in chosen.items():
            if value is not None and value != recorded.get(choice):
                was = f"{choice} {recorded[choice]!r}" if choice in recorded else f"no {choice}"
                raise UsageError(
                    f"Memory '{self.name}' was made with {was}, not {value!r}; "
                    "leave that out, or write under another name."
                )

    def _unmake(self, id: str) -> None:
        """Let a name be free again that was taken for a write that failed."""
        try:
            self._send.call("DELETE", f"{path_of(id)}?if_version=0")
        except ByheartError:
            # What is told is why the write failed.
            return

    # ---- asking ----

    def ask(
        self,
        question: str,
        *,
        stop: str | Sequence[str] = (),
        version: int | None = None,
        **options: Unpack[DecodingOptions],
    ) -> str:
        """The answer to ``question``.

        Args:
            stop: strings that end the answer.
            version: an earlier one that is asked; the newest without it.
            options: ``max_tokens``, ``temperature``, ``top_p``, ``top_k``, ``seed``, as for ``Session.ask``.

        Raises MissingError, UsageError; InputError where nothing was written.
        """
        return "".join(self.stream(question, stop=stop, version=version, **options)).strip()

    def stream(
        self,
        question: str,
        *,
        stop: str | Sequence[str] = (),
        version: int | None = None,
        **options: Unpack[DecodingOptions],
    ) -> Iterator[str]:
        """The answer piece by piece, as it is made; arguments as for ``ask``, errors before the first piece."""
        memory = {"id": self.name} if version is None else {"id": self.name, "version": version}
        events, first = self._begin(question, {"memory": memory}, stop, options)
        if not take_answer(first).version:
            events.close()
            raise InputError("Nothing has been written into this memory; write a text first.")
        return self._pieces(events, first)

    def reply(
        self, question: str, *, stop: str | Sequence[str] = (), **options: Unpack[DecodingOptions]
    ) -> Iterator[str]:
        """As ``stream``, for a turn of a conversation, which may be its first: the memory may be empty, or missing."""
        try:
            events, first = self._begin(question, {"memory": self.name}, stop, options)
        except MissingError:
            events, first = self._begin(question, {}, stop, options)
        return self._pieces(events, first)

    def _begin(
        self, question: str, memory: dict[str, Any], stop: str | Sequence[str], options: Mapping[str, Any]
    ) -> tuple[Events, dict[str, Any]]:
        """The events of an answer that has begun, and the first of them; asked again until it begins."""
        body = {
            **memory,
            **_decoding(options),
            "messages": [{"role": "user", "content": question}],
            "stop": [stop] if isinstance(stop, str) else list(stop),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._chosen["model"]:
            body["model"] = self._chosen["model"]

        def begin() -> tuple[Events, dict[str, Any]]:
            events = self._send.events("/v1/chat/completions", body)
            return events, next(events, {})

        return self._send.retrying(begin, safe=True)

    def _pieces(self, events: Events, first: dict[str, Any]) -> Iterator[str]:
        with closing(events):
            for event in chain([first], told(events)):
                answer = take_answer(event)
                if answer.text:
                    yield answer.text
                self.answer_tokens = answer.tokens or self.answer_tokens

    # ---- keeping ----

    def fork(self, new: str, *, version: int | None = None) -> RemoteMemory:
        """A second memory that begins as this one is, or was in an earlier version. Raises ConflictError."""
        body = {"name": new} if version is None else {"name": new, "version": version}
        self._send.call("POST", f"{self._path}/fork", body)
        return self._client.memory(new)

    def forget(self) -> None:
        """Delete it for good, with all its versions; its forks stay.

        Raises MissingError, StoreError where nobody can read it any more and some of its bytes are left.
        """
        gone = take_deleted(self._send.call("DELETE", self._path))
        self._is_known = False
        require_gone(gone)

    def versions(self) -> Iterator[Version]:
        """Its states, the newest first. Raises MissingError. Their ``key`` stays with the server, and is empty."""
        return (take_version(fields) for fields in self._client.pages(f"{self._path}/versions"))

    def restore(self, version: int) -> Version:
        """Make an earlier version the newest once more. Raises MissingError."""
        return take_version(self._send.call("POST", f"{self._path}/versions/{version}/restore"))

    def export(self, path: str | Path, *, version: int | None = None) -> int:
        """Put its state file, or that of an earlier version, in place of a file here; gives the bytes.

        Raises MissingError, CorruptStateError where the bytes are not what the server has, OSError.
        """
        params = {} if version is None else {"version": version}
        with replacing(Path(os.path.expanduser(path))) as file:
            self._send.retrying(lambda: self._send.download(f"{self._path}/content", file, params=params), safe=True)
            return file.stat().st_size

    def read_header(self) -> Header:
        """What its state belongs to and what was written into it. Raises MissingError, StateError."""
        return self._send.retrying(self._read_header, safe=True)

    def _read_header(self) -> Header:
        # Of one version, whoever writes meanwhile.
        where = f"{self._path}/content?version={self.describe().version}"
        # A safetensors file begins with the length of its header.
        length = int.from_bytes(self._send.read_range(where, 0, 8), "little")
        if length > _LONGEST_HEADER:
            raise CorruptStateError(f"Memory '{self.name}' has a header of {length} bytes, which none has.")
        return take_header(self._send.read_range(where, 8, length), Path(self.name))


def path_of(name: str) -> str:
    """Where a server has a memory, by its name or id. Raises StoreError for what cannot be one."""
    return f"/v1/memories/{quote(name if is_id(name) else require_name(name), safe='')}"


def _decoding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of decoding as a server takes them. Raises UnknownNameError, UsageError."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name in _LOCAL_DECODING:
            raise UsageError(f"A server does not decode with {name}; leave it out, or ask on the memory's own machine.")
        if name not in _DECODING:
            raise UnknownNameError("option of decoding", name, (*_DECODING, *_LOCAL_DECODING))
    return {"max_tokens": _MAX_TOKENS, **given}
