"""Routes that serve the page's files, and nothing else of the disk, with headers that keep others' code out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing runs or loads but files of this server; no other page may hold this one, and none gets its address.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked again each time, so that a page never runs against a newer server; the tag makes that cheap.
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """``/`` for the page and ``/page/NAME`` for each of its files, which are read once, now.

    The page asks for no key: it holds nothing of anybody's. What it shows it fetches from ``/v1`` with the key that
    the user enters.
    """
    files = sorted(path for path in _FOLDER.iterdir() if path.suffix in _TYPES)
    return [Route("/" if path.name == "index.html" else f"/page/{path.name}", _answer_with(path)) for path in files]


def _answer_with(path: Path) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that gives this file, or says that the browser has it already."""
    content, kind = path.read_bytes(), _TYPES[path.suffix]
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return answer
