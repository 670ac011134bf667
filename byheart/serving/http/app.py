"""The server as an ASGI application: the table of routes, behind the gate, over an engine and a store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from byheart.errors import ByheartError
from byheart.serving.http.accounts import Accounts
from byheart.serving.http.call import Call, Server, Visit, in_thread
from byheart.serving.http.failures import Refusal, explain
from byheart.serving.http.gate import Gate
from byheart.serving.http.openapi import describe
from byheart.serving.http.operations import OPERATIONS, Operation
from byheart.serving.http.outcomes import ClientGone
from byheart.serving.http.page import page_routes
from byheart.serving.http.settings import Settings
from byheart.serving.http.wire.encoding import json_response
from byheart.serving.jobs import Engine
from byheart.store.memories import Memories

log = logging.getLogger(__name__)
_EXPOSED = ("x-request-id", "retry-after", "retry-after-ms", "etag")
_HUNG_UP = 499


def create_app(engine: Engine, memories: Memories, accounts: Accounts, settings: Settings | None = None) -> Starlette:
    """The application. It closes neither the engine nor the store, which may serve others."""
    server = Server.of(engine, memories, accounts, settings or Settings())
    middleware = [Middleware(Gate, server=server)]
    if server.settings.cors:
        allowed = ("GET", "POST", "PUT", "DELETE")
        cors = Middleware(
            CORSMiddleware,
            allow_origins=server.settings.cors,
            allow_methods=allowed,
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
        middleware.insert(0, cors)
    app = Starlette(
        routes=_routes(server),
        middleware=middleware,
        exception_handlers={HTTPException: _refuse},
        lifespan=lambda app: _sweeping(server),
    )
    # A path with a slash too many is another path.
    app.router.redirect_slashes = False
    return app


def _routes(server: Server) -> list[BaseRoute]:
    """A route for each path, and the page at the end."""
    routes: list[BaseRoute] = [
        Route(operation.path, _endpoint(operation, server), methods=[operation.method]) for operation in OPERATIONS
    ]
    return [*routes, Route("/openapi.json", _describe), *page_routes()]


async def _describe(request: Request) -> Response:
    """The OpenAPI description."""
    return json_response(describe())


def _endpoint(operation: Operation, server: Server) -> Callable[[Request], Awaitable[Response]]:
    """What starlette calls: an operation, for one who may use it; whatever fails becomes an answer."""

    async def answer(request: Request) -> Response:
        visit: Visit = request.scope["byheart"]
        visit.route = operation.path
        try:
            if not operation.is_open:
                _admit(server, visit)
            with server.budget.holding(visit.tenant or "") as held:
                call = Call(server, request, visit.tenant or "", held, visit.id)
                return await operation.handler(call)
        except (ClientDisconnect, ClientGone):
            return Response(status_code=_HUNG_UP)
        except Exception as error:
            return explain(error, visit.id).response()

    return answer


def _admit(server: Server, visit: Visit) -> None:
    """Raise Refusal unless a request has a key, and its tenant has not sent too many."""
    if visit.tenant is None:
        raise Refusal(401, "invalid_api_key", "Send a valid key: Authorization: Bearer sk-byheart-...")
    server.rate.take(visit.tenant)


async def _refuse(request: Request, error: Exception) -> Response:
    """What there is no route for."""
    visit: Visit = request.scope["byheart"]
    return explain(error, visit.id).response()


@asynccontextmanager
async def _sweeping(server: Server) -> AsyncIterator[None]:
    """Before: nothing runs. Inside: expired memories go, and what is left of them. After: nothing runs."""
    task = asyncio.ensure_future(_sweep(server))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _sweep(server: Server) -> None:
    while True:
        with _trying_again():
            swept = await in_thread(server.memories.sweep)
            server.engine.drop(swept.keys)
        with _trying_again():
            # Another server on the same store may have deleted what is kept ready here.
            server.engine.drop(await in_thread(server.memories.gone, server.engine.residents))
        await asyncio.sleep(server.settings.sweep_seconds)


@contextmanager
def _trying_again() -> Iterator[None]:
    """Before and after: nothing. Inside: what cannot be done now is done by a later sweep."""
    try:
        yield
    except (ByheartError, OSError) as error:
        log.warning("What has expired could not be removed; it is tried again: %s", error)
