"""An answer that is sent as events while it is made, and that stops being made when its reader is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from byheart.serving.http.failures import Failure, explain
from byheart.serving.http.outcomes import hung_up
from byheart.serving.http.wire.encoding import DONE, encode_event

log = logging.getLogger(__name__)
_STOPPED = Failure(503, "server_stopped", "The server was stopped before the answer had ended; ask again.")


class EventStream(Response):
    """Events in the order in which they come; an error on the way is the last one, before OpenAI's end.

    Args:
        close: called at the end, also where no event was sent: lets go of what makes them.
        ends_with_done: whether the stream ends with ``[DONE]``.
        error_name: of the event of an error, where its readers go by names.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        request_id: str,
        close: Callable[[], Awaitable[None]],
        ends_with_done: bool = True,
        error_name: str = "",
    ) -> None:
        # Proxies hold answers back unless they are told not to.
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._request_id, self._close = events, request_id, close
        self._end = DONE if ends_with_done else b""
        self._error_name = error_name
        self._sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until there are no more, or the client hangs up."""
        task = asyncio.ensure_future(self._send_all(send))
        listener = asyncio.ensure_future(hung_up(receive))
        try:
            await asyncio.wait({task, listener}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        except asyncio.CancelledError:
            # The server stops, and the client is still there.
            await _cancel(task)
            await self._send_end(send, self._error_event(_STOPPED))
            raise
        finally:
            await _cancel(task)
            await _cancel(listener)
            await self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        last = b""
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    self._sent += 1
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except Exception as error:
            last = self._error_event(explain(error, self._request_id))
        await self._send_end(send, last)

    async def _send_end(self, send: Send, last: bytes) -> None:
        with suppress(Exception):
            await send({"type": "http.response.body", "body": last + self._end, "more_body": False})

    def _error_event(self, failure: Failure) -> bytes:
        body = failure.body
        if not self._error_name:
            return encode_event(body)
        # The event ``error`` of the responses API is flat, and has a number as all its events have.
        flat = {**body["error"], "type": "error", "sequence_number": self._sent}
        return encode_event(flat, self._error_name)


async def _cancel(task: asyncio.Future[None]) -> None:
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
