"""Answers as they come from the engine: several at once, counted, and let go of when nobody waits for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from byheart.serving.http.metrics import Metrics
from byheart.serving.jobs import Ask, Engine, Finished, Piece, TokenScore

T = TypeVar("T")
Part: TypeAlias = tuple[int, Piece | Finished]


class ClientGone(Exception):
    """Nobody waits for this answer any more."""


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client hangs up; the body must have been read."""
    task = asyncio.ensure_future(work)
    listener = asyncio.ensure_future(hung_up(request.receive))
    try:
        await asyncio.wait({task, listener}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for future in (task, listener):
            if not future.done():
                future.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await future


async def hung_up(receive: Receive) -> None:
    """Wait until the client is gone; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass
class Outcome:
    """An answer that has ended, or is on its way."""

    pieces: list[str] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.pieces)

    def add(self, part: Piece | Finished) -> None:
        """What has come."""
        if isinstance(part, Finished):
            self.finished = part
        else:
            self.pieces.append(part.text)
            self.scores.extend(part.scores)


class Answers:
    """The answers to some jobs, in the order in which their pieces come; ``outcomes`` has what came until now."""

    def __init__(self, engine: Engine, metrics: Metrics, jobs: Sequence[Ask]) -> None:
        self.outcomes = [Outcome() for _ in jobs]
        self._metrics = metrics
        self._parts = _merge([engine.ask(job) for job in jobs])
        self._start = time.monotonic()
        self._last: dict[int, float] = {}
        self._first: Part | None = None

    async def begin(self) -> None:
        """Wait for the first piece: what is wrong with a question is known then, before anything was sent."""
        self._first = await self._next()

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Every piece, with the number of its answer."""
        try:
            part = self._first or await self._next()
            while part is not None:
                yield part
                part = await self._next()
        finally:
            await self.close()

    async def finish(self) -> list[Outcome]:
        """All answers, once they have ended."""
        async with aclosing(self.parts()) as parts:
            async for _ in parts:
                pass
        return self.outcomes

    async def close(self) -> None:
        """Let the engine go of what nobody waits for."""
        await self._parts.aclose()

    async def _next(self) -> Part | None:
        try:
            number, part = await self._parts.__anext__()
        except StopAsyncIteration:
            return None
        self.outcomes[number].add(part)
        self._count(number, part)
        return number, part

    def _count(self, number: int, part: Piece | Finished) -> None:
        now = time.monotonic()
        if isinstance(part, Finished):
            self._metrics.finish(part, now - self._start)
            return
        name = "inter_token_latency_seconds" if number in self._last else "time_to_first_token_seconds"
        self._metrics.time(name, now - self._last.get(number, self._start))
        self._last[number] = now


async def _merge(answers: Sequence[AsyncIterator[Piece | Finished]]) -> AsyncGenerator[Part, None]:
    """The pieces of several answers as they come; one alone needs no tasks."""
    if len(answers) == 1:
        async with _closing(answers[0]):
            async for part in answers[0]:
                yield 0, part
        return
    queue: asyncio.Queue[tuple[int, Piece | Finished | BaseException | None]] = asyncio.Queue(len(answers))

    async def pump(number: int, answer: AsyncIterator[Piece | Finished]) -> None:
        try:
            async with _closing(answer):
                async for part in answer:
                    await queue.put((number, part))
        except Exception as error:
            await queue.put((number, error))
        else:
            await queue.put((number, None))

    tasks = [asyncio.ensure_future(pump(number, answer)) for number, answer in enumerate(answers)]
    left = len(tasks)
    try:
        while left:
            number, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _closing:
    """Before: an iterator. Inside: it is used. After: it is closed, where it can be."""

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self._iterator = iterator

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        close: Any = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()
