"""Servers as processes of their own, which can be killed, and a plain client of them."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from byheart.model.backbone import Backbone
from byheart.protocol.codec import shelf
from byheart.serving.engine import LocalEngine
from byheart.serving.http.accounts import Accounts
from byheart.serving.http.app import create_app
from byheart.serving.http.running import listen, run
from byheart.serving.http.settings import Settings
from byheart.store.memories import Memories
from tests.conftest import save_tiny
from tests.samples import ROOT, codec_of, moments_of

MODEL = "tiny"


@dataclass(frozen=True)
class Answer:
    """What a server said; ``status`` is 0 where it said nothing, because it was killed or did not answer in time."""

    status: int
    raw: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def code(self) -> str:
        """Of an error."""
        return str(self.json["error"]["code"]) if self.status >= 400 else ""

    @property
    def text(self) -> str:
        """Of an answer to a question."""
        return str(self.json["choices"][0]["message"]["content"])


@dataclass
class Client:
    """Requests to a server, each on a connection of its own."""

    address: str
    key: str = ""
    timeout: float = 60.0

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """``body``: bytes as they are, anything else as JSON."""
        url = urlsplit(self.address)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=self.timeout)
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, raw, sent)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        except (OSError, http.client.HTTPException):
            return Answer(0)
        finally:
            connection.close()

    def make(self, name: str, **more: Any) -> Answer:
        return self.send("POST", "/v1/memories", {"name": name, **more})

    def write(self, name: str, text: str, source: str, *, once: bool = False) -> Answer:
        """``once``: sent again, it is not written again."""
        headers = {"idempotency_key": source} if once else {}
        return self.send("POST", f"/v1/memories/{name}/writes", {"text": text, "source": source}, **headers)

    def ask(self, name: str, question: str = "Who?", **more: Any) -> Answer:
        messages = [{"role": "user", "content": question}]
        body = {"model": MODEL, "messages": messages, "memory": name, "max_tokens": 4, **more}
        return self.send("POST", "/v1/chat/completions", body)

    def sources(self, name: str) -> list[str]:
        """What was written, the newest first."""
        found: list[str] = []
        after = ""
        while True:
            page = self.send("GET", f"/v1/memories/{name}/writes?limit=100{after}").json
            found += [version["entry"]["source"] for version in page["data"]]
            if not page["has_more"]:
                return found
            after = f"&after={page['last_id']}"


@dataclass
class Server(Client):
    """A server in a process of its own, and how it is ended."""

    pid: int = 0
    seconds: float = 0.0
    """From its start until it was ready."""
    _ended: bool = field(default=False, repr=False)

    def kill(self) -> None:
        """End it at once, as a machine that goes down does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self._end(signal.SIGTERM)

    @property
    def is_alive(self) -> bool:
        if not self._ended:
            self._ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return not self._ended

    def _end(self, number: signal.Signals) -> None:
        if self.is_alive:
            os.kill(self.pid, number)
            os.waitpid(self.pid, 0)
            self._ended = True


def fork_server(
    backbone: Backbone,
    catalogue: str,
    objects: str,
    *,
    cache: Path | None = None,
    settings: Settings | None = None,
    before: Callable[[], object] = lambda: None,
    **engine: Any,
) -> Server:
    """A server over a model that is open here already, without keys: it is ready in a fraction of a second.

    Args:
        before: called first, in the new process.
        engine: of ``LocalEngine``.
    """
    settings, start = settings or Settings(), time.monotonic()
    listener = listen("127.0.0.1", 0)
    ready, tells = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready)
            before()
            memories = Memories(catalogue, objects, cache=cache)
            served = LocalEngine({MODEL: backbone}, **{"max_resident": 1 << 24, **engine})
            app = create_app(served, memories, Accounts(None), settings)
            run(app, listener, settings, lambda: os.write(tells, b"r"))
            served.close()
            memories.close()
        except BaseException:
            os.write(tells, traceback.format_exc(limit=-2).encode()[-2000:])
        finally:
            os._exit(0)
    os.close(tells)
    server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", pid=pid)
    listener.close()
    with os.fdopen(ready, "rb") as pipe:
        said = os.read(pipe.fileno(), 2000) if select.select([pipe], [], [], 60)[0] else b"nothing within a minute"
    server.seconds = time.monotonic() - start
    if said != b"r":
        server.kill()
        raise ChildProcessError(f"the server did not start: {said.decode()[-500:]}")
    return server


def open_tiny(folder: Path) -> Backbone:
    """A tiny model with what a server makes for it at its start, which would take seconds with byheart's own texts."""
    backbone = Backbone.open(str(save_tiny(folder)), dtype="float32")
    shelf.keep(codec_of(backbone))
    moments_of(backbone)
    return backbone


@contextmanager
def forked(*arguments: Any, **more: Any) -> Iterator[Server]:
    """Before: nothing. Inside: a server, as ``fork_server`` makes it. After: it is killed."""
    server = fork_server(*arguments, **more)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def commanded(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Before: nothing. Inside: ``byheart serve`` with these arguments, ready, on a free port. After: it has stopped."""
    command = [sys.executable, "-m", "byheart", "serve", "--port", "0", *arguments]
    start = time.monotonic()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stderr is not None
        said: list[str] = []
        while not said or not said[-1].startswith("Ready"):
            said.append(process.stderr.readline())
            if not said[-1]:
                raise ChildProcessError(f"the server did not start: {''.join(said)[-1000:]}")
        words = " ".join(said).split()
        address = next(word for word in words if word.startswith("http://")).removesuffix("/v1")
        key = next((word for word in words if word.startswith("sk-byheart-")), "")
        server = Server(address, key, pid=process.pid, seconds=time.monotonic() - start)
        try:
            yield server
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            process.wait(60)
