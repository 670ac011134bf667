"""A server on loopback, in a thread of this process, as clients find it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from byheart.serving.http.connection import with_timers


@contextmanager
def serving(app: Starlette, *, header_seconds: float = 10.0, stall_seconds: float = 60.0) -> Iterator[str]:
    """Before: nothing listens. Inside: the server's address. After: it is stopped."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        protocol = with_timers(header_seconds, stall_seconds)
        config = uvicorn.Config(
            app, log_config=None, http=protocol, ws="none", access_log=False, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
