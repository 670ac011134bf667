"""/v1/memories/{memory}/content: a memory as the file that it is, out of the server and into it."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints
from starlette.responses import FileResponse, Response

from byheart.errors import ConflictError, MissingError
from byheart.protocol.header_file import load_header
from byheart.protocol.state import Header
from byheart.serving.http.bodies import save_body
from byheart.serving.http.call import Call, in_thread
from byheart.serving.http.choosing import newest
from byheart.serving.http.failures import Refusal
from byheart.serving.http.routes.memories import name_taken, require_method
from byheart.serving.http.wire.encoding import json_response
from byheart.serving.http.wire.fields import Closed, Subject
from byheart.serving.http.wire.memories import VersionObject
from byheart.store.memories import TenantMemories
from byheart.store.values import Memory, Version

MEDIA_TYPE = "application/octet-stream"
_SPAN = r"(?:\d{1,18}-\d{0,18}|-\d{1,18})"
_TRIES = 2
# Each is read when the memory is opened, and takes room for as long as it is ready.
_MOST_TEXTS = 10_000
_RANGE = re.compile(rf"\s*bytes\s*=\s*{_SPAN}(?:\s*,\s*{_SPAN}){{0,99}}\s*", re.IGNORECASE)


class Exported(Closed):
    """Which version."""

    version: Annotated[int, Field(ge=1, lt=1 << 53, strict=False)] | None = None


class Imported(Closed):
    """Over which model, and whose the memory is, where it is new."""

    model: Annotated[str, StringConstraints(max_length=512)] | None = None
    subject: Subject = ""


async def export_content(call: Call) -> Response:
    """The state file of a version, also in ranges; its ETag is the hash of its bytes."""
    memory = await in_thread(call.memories.get, call.path("memory"))
    version = await newest(call, memory, call.query(Exported).version)
    if version is None:
        raise MissingError("Nothing was written into this memory yet, so there is no file.")
    etag = f'"{version.sha256}"'
    if etag in call.request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"etag": etag})
    path, found = await in_thread(_fetch, call.memories, version)
    _require_range(call.request.headers.get("range", "bytes=0-"), found.st_size)
    name = f"{memory.name or memory.id}-{version.number}.safetensors"
    return FileResponse(path, media_type=MEDIA_TYPE, filename=name, headers={"etag": etag}, stat_result=found)


def _fetch(memories: TenantMemories, version: Version) -> tuple[Path, os.stat_result]:
    """A version's file. Raises MissingError, also where it goes meanwhile."""
    for _ in range(_TRIES):
        path = memories.fetch(version)
        # A copy may have had to make room just now.
        with suppress(FileNotFoundError):
            return path, path.stat()
    raise MissingError("The version was deleted meanwhile.")


async def import_content(call: Call) -> Response:
    """A state file from elsewhere, as a new memory or as the newest version of one, once its model can read it."""
    asked, name = call.query(Imported), call.path("memory")
    memory = await _find(call, name)
    if memory is not None and call.request.headers.get("if-none-match", "").strip() == "*":
        raise Refusal(412, "memory_exists", "There is such a memory, and If-None-Match: * wants none.", param="name")
    with _scratch(call.server.memories.scratch) as path:
        with call.server.uploads.holding(call.tenant) as held:
            sha256 = await save_body(call.request, call.server.settings, held, path)
        header = await in_thread(load_header, path)
        if len(header.written) > _MOST_TEXTS:
            raise Refusal(
                400, "invalid_value", f"The file tells of {len(header.written):,} texts; one may of {_MOST_TEXTS:,}."
            )
        require_method(call, header.method)
        model = _require_model(call, header, asked.model, memory)
        header = await call.server.engine.examine(path, model, call.tenant)
        version = await _keep(call, path, header, sha256, memory, name, model, asked.subject)
    return json_response(VersionObject.of(version).model_dump(), status=200 if memory else 201)


def _require_range(header: str, size: int) -> None:
    """Raise Refusal for a Range header that says nothing, or asks for what no file of ``size`` bytes has."""
    spans = re.findall(r"(\d*)-(\d*)", header)
    if not _RANGE.fullmatch(header) or any(start and end and int(start) > int(end) for start, end in spans):
        raise Refusal(400, "invalid_value", "A Range must be one of bytes, such as bytes=0-99.", param="range")
    if any(int(start) >= size if start else int(end) == 0 for start, end in spans):
        raise Refusal(416, "invalid_value", f"The file has {size:,} bytes, and none there.", param="range")


async def _find(call: Call, name: str) -> Memory | None:
    try:
        return await in_thread(call.memories.get, name)
    except MissingError:
        return None


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Before: nothing. Inside: a name for a file. After: it is gone, unless the store has taken it."""
    path = folder / f"import-{secrets.token_hex(12)}.safetensors"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _require_model(call: Call, header: Header, asked: str | None, memory: Memory | None) -> str:
    """The served model that a state was made with, by its fingerprint. Raises Refusal where there is none."""
    served = call.server.engine.models
    fitting = [name for name, fingerprint in served.items() if fingerprint == header.backbone]
    wanted = memory.model if memory else asked
    model = wanted or next(iter(fitting), None)
    if model is None or (fitting and model not in fitting) or model not in served:
        raise Refusal(
            409, "memory_mismatch", "The file was made with another model than this server's, or than the memory's."
        )
    if (
        memory is not None
        and memory.version
        and (memory.method, dict(memory.options)) != (header.method, header.options)
    ):
        raise Refusal(
            409, "memory_mismatch", "The file was made with another method, or other options, than the memory."
        )
    return model


async def _keep(
    call: Call,
    path: Path,
    header: Header,
    sha256: str,
    memory: Memory | None,
    name: str,
    model: str,
    subject: str,
) -> Version:
    """The file as a version; a memory that was made for it is gone again where it could not be kept."""
    expected = None if memory is None else memory.version
    if memory is None:
        try:
            memory = await in_thread(
                call.memories.create,
                name,
                model=model,
                method=header.method,
                options=header.options,
                subject=subject,
            )
        except ConflictError as error:
            raise name_taken(error) from None
        expected = 0
        try:
            return await _commit(call, memory, path, header, sha256, expected)
        except BaseException:
            # Unless somebody else has written into it meanwhile.
            with suppress(ConflictError, MissingError):
                await in_thread(call.memories.delete, memory.id, expected=0)
            raise
    return await _commit(call, memory, path, header, sha256, expected)


async def _commit(call: Call, memory: Memory, path: Path, header: Header, sha256: str, expected: int | None) -> Version:
    last = header.written[-1] if header.written else None
    entry: dict[str, Any] = {
        "source": "import",
        "at": last.at if last else None,
        "tokens": header.tokens,
        "characters": header.characters,
        "texts": len(header.written),
    }
    return await in_thread(
        call.memories.commit,
        memory.id,
        path,
        sha256=sha256,
        header=header,
        operation="import",
        entry=entry,
        expected=expected,
    )
