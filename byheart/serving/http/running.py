"""A server that runs: over an engine and a store, until it is told to stop."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import uvicorn
from starlette.types import ASGIApp

from byheart.errors import UsageError
from byheart.serving.http.connection import with_timers
from byheart.serving.http.settings import LOOPBACK, Settings

_MOST_CONNECTIONS = 1000


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return host in LOOPBACK or ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UsageError where it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(
            f"Nothing can listen on {host} port {port}: {error}; take another --host or --port."
        ) from error
    return listener


def run(app: ASGIApp, listener: socket.socket, settings: Settings, ready: Callable[[], None]) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); running answers are given some seconds to end.

    Args:
        ready: called when requests are answered.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        http=with_timers(settings.header_seconds, settings.stall_seconds),
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=round(settings.drain_seconds),
    )
    _Server(config, ready).run([listener])


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready, and ends as a function does."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Before: signals are Python's. Inside: the first lets answers end, the second cuts them off. After: as before.

        uvicorn's own would then raise the signal again, and end the process before engine and store are closed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
