"""A hub on this machine that has no model and keeps a list of what it was asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REQUESTS = "BYHEART_ATTACK_REQUESTS"
"""The environment variable that names the file of the requests."""


def requests() -> list[str]:
    """What was asked for so far."""
    path = Path(os.environ[REQUESTS])
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def listening(log: Path) -> Iterator[str]:
    """Inside: a server at the address that is given, which answers 404 and writes each request into ``log``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with log.open("a") as file:
                file.write(f"{self.command} {self.path}\n")
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
