"""POST /v1/memories/{memory}/writes: text, messages or files into a memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from typing import Any

from starlette.responses import Response

from byheart.errors import InputError
from byheart.serving.http.bodies import content_type, parse_model, parse_object
from byheart.serving.http.call import Call, in_thread
from byheart.serving.http.choosing import require_served
from byheart.serving.http.failures import Refusal
from byheart.serving.http.multipart import Part, parse_form
from byheart.serving.http.outcomes import until_gone
from byheart.serving.http.streams import EventStream
from byheart.serving.http.versions import Texts, idempotency_key, require_version, turns_of, write_texts
from byheart.serving.http.wire.encoding import encode_event, json_response
from byheart.serving.http.wire.memories import NewWrite, WriteObject
from byheart.serving.jobs import NewText
from byheart.store.values import Memory, Version


async def create_write(call: Call) -> Response:
    """Write; the answer comes when the new version is kept, or events tell of it until then."""
    asked, texts = await _read(call)
    memory = await in_thread(call.memories.get, call.path("memory"))
    require_served(call, memory)
    key = idempotency_key(call, memory)
    if key is None:
        require_version(memory, asked.if_version)
    wanted = Texts(texts, expected=asked.if_version, idempotency_key=key)
    if asked.stream:
        writing = _Writing(call, memory, wanted)
        return EventStream(writing.stream(), request_id=call.id, close=writing.close)
    work = write_texts(call, memory, wanted)
    return json_response(_written(await until_gone(call.request, work)))


def _written(version: Version) -> dict[str, Any]:
    return WriteObject.of(version).model_dump()


async def _read(call: Call) -> tuple[NewWrite, list[NewText]]:
    """What is asked for, and the texts. Raises Refusal, InputError."""
    kind, raw = content_type(call.request), await call.read(call.server.settings.text_bytes)
    if kind == "application/json":
        asked = parse_model(NewWrite, parse_object(raw))
        texts = turns_of(asked.messages, asked.source) if asked.messages else []
        return asked, texts or [NewText(asked.text or "", asked.source or "text")]
    if kind == "text/plain":
        asked = _parse_fields(call.request.query_params.items(), "text")
        return asked, [NewText(decode(raw, "The text"), asked.source or "text")]
    if kind == "multipart/form-data":
        parts = list(parse_form(call.request.headers["content-type"], raw))
        asked = _parse_fields(
            ((part.name, decode(part.content, part.name)) for part in parts if not part.file_name), ""
        )
        return asked, _files(parts, asked.source)
    raise Refusal(
        415, "unsupported_media_type", "Send JSON, text/plain, or files as multipart/form-data; see Content-Type."
    )


def _parse_fields(fields: Iterable[tuple[str, str]], text: str) -> NewWrite:
    """The fields of a form, or those behind a question mark, as those of a body. Raises Refusal."""
    given: dict[str, Any] = dict(fields)
    if given.get("if_version", "").isdecimal() and len(given["if_version"]) < 17:
        given["if_version"] = int(given["if_version"])
    if "stream" in given:
        given["stream"] = {"true": True, "false": False}.get(given["stream"], given["stream"])
    return parse_model(NewWrite, {"text": text, **given})


def _files(parts: Sequence[Part], source: str | None) -> list[NewText]:
    """A text for each file, in order; its source is its own name where none is given. Raises Refusal, InputError."""
    files = [part for part in parts if part.file_name]
    if not files:
        raise Refusal(400, "missing_field", "file: the form has no file.", param="file")
    names = [parse_model(NewWrite, {"text": "", "source": source or part.file_name}).source for part in files]
    return [NewText(decode(part.content, str(name)), str(name)) for part, name in zip(files, names, strict=True)]


def decode(raw: bytes, name: str) -> str:
    """Bytes as text. Raises InputError for what is no UTF-8."""
    try:
        return raw.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}.") from None


class _Writing:
    """A write whose progress is told."""

    def __init__(self, call: Call, memory: Memory, wanted: Texts) -> None:
        self._loop = asyncio.get_running_loop()
        self._progress: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()
        work = write_texts(call, memory, wanted, self._note)
        self._task = asyncio.ensure_future(work)
        self._task.add_done_callback(lambda _: self._progress.put_nowait(None))
        # The texts are in memory until they are written, however long that waits for its turn.
        call.held.is_kept = True
        self._task.add_done_callback(lambda _: call.held.release())

    def _note(self, done: int, total: int) -> None:
        self._loop.call_soon_threadsafe(self._progress.put_nowait, (done, total))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """How far it is, and in the end what it has made."""
        while (progress := await self._progress.get()) is not None:
            done, total = progress
            yield encode_event({"object": "memory.write.progress", "done": done, "total": total})
        yield encode_event(_written(await self._task))

    async def close(self) -> None:
        """Stop writing, where it has not ended."""
        self._task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self._task
