"""What every request passes: a name for it, a look at where it comes from, and a line in the log without content."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from byheart.serving.http.call import Server, Visit
from byheart.serving.http.failures import Refusal, explain

access = logging.getLogger("byheart.access")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ALWAYS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Gate:
    """Around the whole application."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, start, status = Headers(scope=scope), time.monotonic(), 0
        asked = headers.get("x-request-id", "")
        visit = Visit(asked if _ID.fullmatch(asked) else f"req_{secrets.token_hex(12)}")
        scope["byheart"] = visit

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                marked = MutableHeaders(scope=message)
                marked["x-request-id"] = visit.id
                marked.setdefault("cache-control", "no-store")
                for name, value in _ALWAYS.items():
                    marked.setdefault(name, value)
            await send(message)

        try:
            self._require_known(headers)
            visit.tenant = self._server.accounts.find(_key(headers))
            await self._app(scope, receive, send_marked)
        except Exception as error:
            if status:
                raise
            await explain(error, visit.id).response()(scope, receive, send_marked)
        finally:
            milliseconds = (time.monotonic() - start) * 1000
            # 499 is what nginx writes where a client has hung up.
            access.info(
                "%s %s %s %d %.0f ms %s",
                *(visit.id, scope["method"], visit.route, status or 499, milliseconds, visit.tenant or "-"),
            )
            self._server.metrics.count_request(visit.route, status or 499)

    def _require_known(self, headers: Headers) -> None:
        """Raise Refusal for a request that was sent to another server, or by a web page of another one."""
        settings, host = self._server.settings, headers.get("host", "")
        if settings.hosts and _without_port(host) not in settings.hosts:
            raise Refusal(403, "host_not_allowed", "This server is not known by the name in the Host header.")
        origin = headers.get("origin")
        if origin is None or _is_allowed(origin, settings.cors):
            return
        if urlsplit(origin).netloc.lower() != host.lower():
            raise Refusal(403, "origin_not_allowed", "Web pages of that origin may not use this server.")


def _is_allowed(origin: str, allowed: Iterable[str]) -> bool:
    return any(other in ("*", origin) for other in allowed)


def _without_port(host: str) -> str:
    """The name in a Host header: ``[::1]:80`` is ``::1``."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None
