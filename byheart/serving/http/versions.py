"""Texts written into a memory: one writer after another, and nothing acknowledged before the store has it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from byheart.errors import ConflictError
from byheart.protocol.state import Written
from byheart.serving.http.call import Call, in_thread
from byheart.serving.http.choosing import newest, reference
from byheart.serving.http.failures import Refusal
from byheart.serving.http.wire.questions import ChatMessage
from byheart.serving.jobs import NewState, NewText, Progress, Write
from byheart.store.values import Memory, Operation, Version

# Of two servers that write one memory all the time, each comes first half of the time.
_TRIES = 20
_LONGEST_KEY = 256


@dataclass(frozen=True)
class Texts:
    """What is to be written, and how.

    Args:
        expected: the version that the memory must have. Without it, texts that others write meanwhile come before
            these.
        idempotency_key: of a request that may come twice; the second time it gives what the first one made.
    """

    texts: Sequence[NewText]
    operation: Operation = "write"
    expected: int | None = None
    idempotency_key: str | None = None

    @property
    def request(self) -> str:
        """What a version is kept with, so that a key cannot stand for two requests; empty without a key."""
        if self.idempotency_key is None:
            return ""
        said = json.dumps([[(text.text, text.source, text.answer) for text in self.texts], self.expected])
        return hashlib.sha256(said.encode()).hexdigest()[:32]


async def write_texts(call: Call, memory: Memory, wanted: Texts, progress: Progress | None = None) -> Version:
    """The new version of a memory, with some texts more.

    Raises ConflictError where the version is another, Refusal, also for a key that was used for another request, and
    what the engine and the store raise.
    """
    start = time.monotonic()
    lock = call.server.locks.of(memory.id)
    async with lock:
        earlier = await _replay(call, wanted)
        if earlier is not None:
            return earlier
        for left in reversed(range(_TRIES)):
            try:
                version = await _write_once(call, memory.id, wanted, progress)
                break
            except ConflictError:
                # It may be the same request that came before this one, to another server.
                earlier = await _replay(call, wanted)
                if earlier is not None:
                    return earlier
                if wanted.expected is not None or not left:
                    raise
    call.server.metrics.time("memory_write_seconds", time.monotonic() - start)
    call.server.metrics.count("written_tokens", version.entry.get("tokens", 0))
    # Another server may have had a request with the same key meanwhile.
    return _require_same(version, wanted.request)


async def _replay(call: Call, wanted: Texts) -> Version | None:
    """What a request with the same key has made. Raises Refusal where that was another request."""
    if wanted.idempotency_key is None:
        return None
    earlier = await in_thread(call.memories.replay, wanted.idempotency_key)
    return None if earlier is None else _require_same(earlier, wanted.request)


def _require_same(version: Version, request: str) -> Version:
    """The version. Raises Refusal where another request has made it with the same key."""
    if version.entry.get("request", request) != request:
        raise Refusal(
            422, "idempotency_key_reused", "This Idempotency-Key was used for another request; every one needs its own."
        )
    return version


async def _write_once(call: Call, id: str, wanted: Texts, progress: Progress | None) -> Version:
    memory = await in_thread(call.memories.get, id)
    require_version(memory, wanted.expected)
    job = Write(
        memory.model,
        wanted.texts,
        call.server.memories.scratch,
        memory=reference(call.memories, await newest(call, memory)),
        method=memory.method,
        options=memory.options,
        tenant=call.tenant,
    )
    state = await call.server.engine.write(job, progress)
    try:
        return await in_thread(
            call.memories.commit,
            id,
            state.path,
            sha256=state.sha256,
            header=state.header,
            operation=wanted.operation,
            entry={**_entry(state), **({"request": wanted.request} if wanted.request else {})},
            expected=memory.version,
            idempotency_key=wanted.idempotency_key,
        )
    except BaseException:
        # What was not kept must not be read from memory either.
        state.path.unlink(missing_ok=True)
        call.server.engine.drop([f"{call.tenant}:{state.sha256}"])
        raise


def require_version(memory: Memory, expected: int | None) -> None:
    """Raise ConflictError unless a memory has the version that a request expects."""
    if expected is not None and memory.version != expected:
        raise ConflictError(
            f"The memory has version {memory.version}, not {expected}: somebody wrote into it. Read it again."
        )


def _entry(state: NewState) -> dict[str, Any]:
    """What was written, as one entry of the catalogue."""
    first, *others = state.entries
    total = Written(
        first.source,
        state.entries[-1].at,
        sum(entry.tokens for entry in state.entries),
        sum(entry.characters for entry in state.entries),
    )
    return {**asdict(total), **({"texts": len(state.entries)} if others else {})}


def turns_of(messages: Sequence[ChatMessage], source: str | None) -> list[NewText]:
    """A conversation as texts: a question with the answer that follows it is a turn, anything else a text."""
    texts: list[NewText] = []
    for message in (each.to_message() for each in messages):
        last = texts[-1] if texts else None
        if message.role == "assistant" and last is not None and last.answer is None:
            texts[-1] = NewText(last.text, last.source, message.content)
        else:
            texts.append(NewText(message.content, source or "chat"))
    return texts


def idempotency_key(call: Call, memory: Memory) -> str | None:
    """What makes a request that is sent twice one request; it belongs to the memory. Raises Refusal."""
    key = call.request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= _LONGEST_KEY:
        raise Refusal(400, "invalid_value", f"An Idempotency-Key has 1 to {_LONGEST_KEY} characters.")
    return hashlib.sha256(f"{memory.id}/{key}".encode("utf-8", "replace")).hexdigest()
