"""Values as JSON, and as events of a stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

DONE = b"data: [DONE]\n\n"
"""What OpenAI's streams end with."""


def encode(value: Any) -> bytes:
    """JSON in UTF-8. Half characters, which no encoding has, become question marks."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def encode_event(value: Any, name: str = "") -> bytes:
    """An event of a stream, with a name where its readers go by one."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + encode(value) + b"\n\n"


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(encode(value), status_code=status, headers=dict(headers or {}), media_type="application/json")
