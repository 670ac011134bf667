"""A request with all that answers it: the server's parts, who asks, and what the request said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import ParamSpec

from byheart.serving.http import bodies
from byheart.serving.http.accounts import Accounts
from byheart.serving.http.limits import Budget, Held, RateLimit, WriterLocks
from byheart.serving.http.metrics import Metrics
from byheart.serving.http.settings import Settings
from byheart.serving.jobs import Engine
from byheart.store.memories import Memories, TenantMemories

Body = TypeVar("Body", bound=BaseModel)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """The parts of a server."""

    engine: Engine
    memories: Memories
    accounts: Accounts
    settings: Settings
    metrics: Metrics
    rate: RateLimit
    budget: Budget
    uploads: Budget
    locks: WriterLocks = field(default_factory=WriterLocks)

    @classmethod
    def of(cls, engine: Engine, memories: Memories, accounts: Accounts, settings: Settings) -> Server:
        """A server over an engine and a store."""
        rate, budget = RateLimit(settings.requests_per_minute), Budget(settings.held_bytes)
        uploads = Budget(settings.uploaded_bytes)
        return cls(engine, memories, accounts, settings, Metrics(engine), rate, budget, uploads)


@dataclass
class Visit:
    """What is known of a request before and after it is answered, for the log."""

    id: str
    tenant: str | None = None
    route: str = "-"


@dataclass(frozen=True)
class Call:
    """A request that may be answered: its sender is known."""

    server: Server
    request: Request
    tenant: str
    held: Held
    id: str

    @cached_property
    def memories(self) -> TenantMemories:
        """Those of its sender, and no others."""
        return self.server.memories.of(self.tenant, self.server.settings.quota)

    async def body(self, kind: type[Body], most: int | None = None) -> Body:
        """The body as a model has it. Raises Refusal."""
        return bodies.parse_model(kind, await self.fields(most))

    async def fields(self, most: int | None = None) -> dict[str, Any]:
        """The body as JSON has it. Raises Refusal."""
        bodies.require_json(self.request)
        return bodies.parse_object(await self.read(most or self.server.settings.body_bytes))

    async def read(self, most: int) -> bytes:
        """The body. Raises Refusal."""
        return await bodies.read_body(self.request, self.server.settings, most, self.held)

    def query(self, kind: type[Body]) -> Body:
        """What stands behind the question mark, as a model has it. Raises Refusal."""
        return bodies.parse_model(kind, dict(self.request.query_params))

    def path(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])


Handler = Callable[[Call], Awaitable[Response]]


async def in_thread(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What the store gives; it waits for disks and databases, so it is called in a thread."""
    return await run_in_threadpool(call, *arguments, **options)
