"""Bodies of requests: read within bounds of bytes and time, and parsed within bounds, before anything is made."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from byheart.files import parse_json
from byheart.serving.http.failures import Refusal
from byheart.serving.http.limits import Held
from byheart.serving.http.settings import Settings

Body = TypeVar("Body", bound=BaseModel)
_MOST_VALUES = 200_000


async def stream_body(request: Request, settings: Settings, most: int) -> AsyncIterator[bytes]:
    """A body piece by piece. Raises Refusal for one that is too large, or too slow."""
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated[:20]) > most:
        raise _too_large(most)
    start, received = time.monotonic(), 0
    pieces = request.stream().__aiter__()
    while True:
        left = settings.body_seconds + received / settings.body_rate - (time.monotonic() - start)
        try:
            piece = await asyncio.wait_for(pieces.__anext__(), max(left, 0.001))
        except StopAsyncIteration:
            return
        except (asyncio.TimeoutError, TimeoutError):
            raise Refusal(408, "body_too_slow", "The body of the request came too slowly, or was cut off.") from None
        received += len(piece)
        if received > most:
            raise _too_large(most)
        yield piece


def _too_large(most: int) -> Refusal:
    return Refusal(413, "body_too_large", f"The body of this request may have {most:,} bytes; send less at once.")


async def read_body(request: Request, settings: Settings, most: int, held: Held) -> bytes:
    """A body as a whole. Raises Refusal."""
    pieces = []
    async for piece in stream_body(request, settings, most):
        held.add(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


async def save_body(request: Request, settings: Settings, held: Held, path: Path) -> str:
    """Put a state file into a file as it comes, and give the hash (SHA-256) of its bytes. Raises Refusal, OSError."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        async for piece in stream_body(request, settings, settings.state_bytes):
            held.add(len(piece))
            digest.update(piece)
            await asyncio.to_thread(file.write, piece)
    return digest.hexdigest()


def content_type(request: Request) -> str:
    """The type of a body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(request: Request) -> None:
    """Raise Refusal unless a body says that it is JSON: what a web page sends unasked does not."""
    if content_type(request) != "application/json":
        raise Refusal(415, "unsupported_media_type", "Send the body as JSON, with Content-Type: application/json.")


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises Refusal."""
    try:
        value = parse_json(raw.decode("utf-8"), unique=True, most=_MOST_VALUES)
        if b"\\ud" in raw or b"\\uD" in raw:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise Refusal(400, "invalid_json", f"The body is not UTF-8: byte {error.start}.") from None
    except UnicodeEncodeError:
        raise Refusal(400, "invalid_json", "The body holds half a character (a lone surrogate).") from None
    except ValueError as error:
        raise Refusal(400, "invalid_json", f"The body is not JSON: {str(error)[:200]}.") from None
    if not isinstance(value, dict):
        raise Refusal(400, "invalid_json", "The body must be a JSON object.")
    return value


def parse_model(kind: type[Body], fields: dict[str, Any]) -> Body:
    """Fields as a model has them. Raises Refusal, which names the first that is wrong."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        reason = first["msg"].removeprefix("Value error, ")
        code = "missing_field" if first["type"] == "missing" else "invalid_value"
        code = "unknown_field" if first["type"] == "extra_forbidden" else code
        raise Refusal(400, code, f"{param or 'The body'}: {reason}.", param=param) from None
