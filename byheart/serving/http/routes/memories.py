"""The routes under /v1/memories that change no state: make, list, read, rename, fork, restore, forget."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from byheart.errors import ConflictError, MissingError, StoreError
from byheart.methods import defaults, find
from byheart.serving.http.bodies import parse_model
from byheart.serving.http.call import Call, in_thread
from byheart.serving.http.choosing import split_model
from byheart.serving.http.failures import Refusal
from byheart.serving.http.wire.encoding import json_response
from byheart.serving.http.wire.fields import Closed, Metadata, Name, Subject
from byheart.serving.http.wire.memories import (
    AuditObject,
    ChangedMemory,
    DeletedObject,
    MemoryObject,
    NewFork,
    NewMemory,
    UsageObject,
    VersionObject,
    page_object,
)
from byheart.store.values import Deleted, Version

_NUMBER = re.compile("[0-9]{1,15}")
_METADATA = re.compile(r"metadata\[(.*)\]")


class Listed(Closed):
    """Which memories are listed."""

    limit: Annotated[int, Field(ge=1, le=100, strict=False)] = 20
    after: Name | None = None
    order: Literal["asc", "desc"] = "desc"
    name: Name | None = None
    subject: Subject | None = None
    metadata: Metadata = Field(default_factory=dict)


class ListedByNumber(Closed):
    """Which versions, or entries of the audit, are listed; the newest come first."""

    limit: Annotated[int, Field(ge=1, le=100, strict=False)] = 20
    after: Annotated[int, Field(ge=0, lt=1 << 53, strict=False)] | None = None


class DeletedAt(Closed):
    """The version that a memory must have to be deleted, so that nobody has written meanwhile."""

    if_version: Annotated[int, Field(ge=0, lt=1 << 53, strict=False)] | None = None


class Erased(Closed):
    """Whose memories go."""

    subject: Annotated[Subject, Field(min_length=1)]


async def create_memory(call: Call) -> Response:
    """A new memory, with nothing written."""
    body = await call.body(NewMemory)
    if body.method is not None:
        require_method(call, body.method)
    _require_options(body.method, body.options)
    model = next(iter(call.server.engine.models)) if body.model is None else body.model
    if split_model(model, call.server.engine.models)[1] is not None:
        raise Refusal(400, "invalid_value", "model: name a model, without a memory.", param="model")
    try:
        memory = await in_thread(
            call.memories.create,
            body.name,
            model=model,
            method=body.method,
            options=body.options,
            metadata=body.metadata,
            subject=body.subject,
            expires_after=body.expires_after.to_expiry() if body.expires_after else None,
        )
    except ConflictError as error:
        raise name_taken(error) from None
    return json_response(MemoryObject.of(memory).model_dump(), status=201)


def require_method(call: Call, method: str) -> None:
    """Raise UnknownNameError or Refusal for what is no method, or none that this server allows.

    A folder of learned parts, which the library takes as a method too, is none here: no request names a path.
    """
    find(method)
    allowed = call.server.settings.methods
    if method not in allowed:
        raise Refusal(
            403,
            "method_not_served",
            f"This server makes no memories with method '{method}', but with {', '.join(allowed)}.",
            param="method",
        )


def _require_options(method: str | None, options: dict[str, Any]) -> None:
    """Raise Refusal for what is no option of a method; its value is looked at when it writes."""
    if method is None:
        if options:
            raise Refusal(400, "invalid_value", "options: name the method that they are of.", param="options")
        return
    known = defaults(find(method))
    for option in options:
        if option not in known:
            raise Refusal(400, "unknown_name", f"Method '{method}' has no option '{option}'.", param="options")


def name_taken(error: ConflictError) -> Refusal:
    """What is said where a name is taken."""
    return Refusal(409, "memory_exists", str(error), param="name")


async def list_memories(call: Call) -> Response:
    """Memories by when they were made."""
    fields: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for key, value in call.request.query_params.items():
        found = _METADATA.fullmatch(key)
        if found:
            metadata[found[1]] = value
        else:
            fields[key] = value
    asked = parse_model(Listed, {**fields, "metadata": metadata})
    page = await in_thread(call.memories.list, **dict(asked))
    return json_response(page_object(page, list(map(MemoryObject.of, page.data)), [each.id for each in page.data]))


async def get_memory(call: Call) -> Response:
    """One memory."""
    return json_response(MemoryObject.of(await in_thread(call.memories.get, call.path("memory"))).model_dump())


async def update_memory(call: Call) -> Response:
    """Another name, other metadata, another expiry; what it holds stays."""
    body = await call.body(ChangedMemory)
    try:
        memory = await in_thread(call.memories.update, call.path("memory"), **body.changes())
    except ConflictError as error:
        raise name_taken(error) from None
    return json_response(MemoryObject.of(memory).model_dump())


async def fork_memory(call: Call) -> Response:
    """A memory that begins as this one is, or was."""
    body = await call.body(NewFork)
    try:
        memory = await in_thread(call.memories.fork, call.path("memory"), body.name, version=body.version)
    except ConflictError as error:
        raise name_taken(error) from None
    return json_response(MemoryObject.of(memory).model_dump(), status=201)


async def list_versions(call: Call) -> Response:
    """All states that a memory has or had, the newest first."""
    return await _list_versions(call, lambda version: True)


async def list_writes(call: Call) -> Response:
    """What was written, when, and how much; never the text."""
    return await _list_versions(call, lambda version: version.operation in ("write", "chat", "import"))


async def _list_versions(call: Call, is_listed: Any) -> Response:
    asked = call.query(ListedByNumber)
    page = await in_thread(call.memories.versions, call.path("memory"), limit=asked.limit, after=asked.after)
    shown = [VersionObject.of(version) for version in page.data if is_listed(version)]
    return json_response(page_object(page, list(shown), [str(version.number) for version in page.data]))


async def restore_version(call: Call) -> Response:
    """An earlier version made the newest once more."""
    version: Version = await in_thread(call.memories.restore, call.path("memory"), version_number(call))
    return json_response(VersionObject.of(version).model_dump())


async def delete_version(call: Call) -> Response:
    """An earlier version, for good."""
    name, number = call.path("memory"), version_number(call)
    return await _delete(call, partial(call.memories.delete_version, name, number), name)


async def delete_memory(call: Call) -> Response:
    """A memory with all its versions, for good; its forks stay."""
    asked = call.query(DeletedAt)
    memory = await in_thread(call.memories.get, call.path("memory"))
    return await _delete(call, partial(call.memories.delete, memory.id, expected=asked.if_version), memory.id)


async def erase_subject(call: Call) -> Response:
    """Every memory about somebody, with forks and versions, for good."""
    return await _delete(call, partial(call.memories.erase, call.query(Erased).subject))


async def _delete(call: Call, work: Callable[[], Deleted], id: str | None = None) -> Response:
    """What was deleted. It is not ready to be read any more either, also where only a part of the work was done."""
    try:
        deleted = await in_thread(work)
        call.server.engine.drop(deleted.keys)
    finally:
        # Where that cannot be asked now, the next sweep does.
        with suppress(StoreError):
            call.server.engine.drop(await in_thread(call.server.memories.gone, call.server.engine.residents))
    return json_response(DeletedObject.of(deleted, id).model_dump())


def version_number(call: Call) -> int:
    """The version in the path. Raises MissingError."""
    number = call.path("version")
    if not _NUMBER.fullmatch(number):
        raise MissingError(f"There is no version '{number[:50]}'; versions are numbers.")
    return int(number)


async def get_usage(call: Call) -> Response:
    """What this tenant has, and may have."""
    return json_response(UsageObject.of(await in_thread(call.memories.usage)).model_dump())


async def list_audit(call: Call) -> Response:
    """What was done to this tenant's memories, the newest first."""
    asked = call.query(ListedByNumber)
    page = await in_thread(call.memories.audit, limit=asked.limit, after=asked.after)
    return json_response(
        page_object(page, list(map(AuditObject.of, page.data)), [str(each.number) for each in page.data])
    )
