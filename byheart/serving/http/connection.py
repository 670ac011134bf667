"""A connection that cannot be held for nothing: who sends no request, or reads no answer, is dropped."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's connection with two more timers, which leave one that works alone.

    It closes unless the head of a request comes in time, and at once when its client has read nothing for a while of
    what waits to be sent; the request that was being answered is cancelled as if the client had hung up. What a client
    still sends of a body after its answer must end in that time too.
    """

    header_seconds = 10.0
    stall_seconds = 60.0
    _timers: dict[str, asyncio.TimerHandle]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        self._timers = {}
        super().connection_made(transport)
        self._wait("head", self.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        for name in list(self._timers):
            self._stop(name)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Look whether there is a request now."""
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._stop("head")
            return
        self._stop("rest")
        # uvicorn waits no more for the next request once the last of a body has come after its answer.
        is_waited_for = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
        if not is_waited_for and "head" not in self._timers:
            self._wait("head", self.header_seconds)

    def on_response_complete(self) -> None:
        """The request was answered, maybe before its body had come."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._wait("rest", self.header_seconds)

    def pause_writing(self) -> None:
        """More waits to be sent than a client has read."""
        super().pause_writing()
        self._wait("read", self.stall_seconds)

    def resume_writing(self) -> None:
        """The client has read it."""
        self._stop("read")
        super().resume_writing()

    def _wait(self, name: str, seconds: float) -> None:
        self._stop(name)
        # Closing would wait until all is sent.
        self._timers[name] = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def with_timers(header_seconds: float, stall_seconds: float) -> type[Any]:
    """A class of connections with these timers, as uvicorn takes it."""
    return type("TimedConnection", (Connection,), {"header_seconds": header_seconds, "stall_seconds": stall_seconds})
