"""A web server in this process whose files, answers and faults a test says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """What it serves, by path, and what was asked of it.

    Args:
        cut: after so many bytes of an answer the connection is closed; 0 never.
        tag: the version of its files; empty where the server does not say one.
        ranges: whether it can begin in the middle of a file.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    cut: int = 0
    tag: str = '"1"'
    ranges: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Server]:
    """Inside: a server at ``url``. After: it is closed."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.asked.append((self.path, wanted))
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = 0
            if wanted and state.ranges and self.headers.get("If-Range") == state.tag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if state.tag:
                self.send_header("ETag", state.tag)
            self.end_headers()
            end = start + state.cut if state.cut else len(content)
            self.wfile.write(content[start:end])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
