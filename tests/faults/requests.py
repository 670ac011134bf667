"""Requests that no client would send, to a server in this process whose engine has no model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette

from byheart.serving.http.accounts import Accounts, make_key
from byheart.serving.http.app import create_app
from byheart.serving.http.settings import Settings
from byheart.store.memories import Memories
from tests.faults.attack import Attack, Try
from tests.serving.fakes import FakeEngine, save_text

SECRET = "QX7-PERIWINKLE"
_BATCH, _RENEWED = 100, 10
_ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1 << 53,
        1 << 64,
        1e308,
        -0.5,
        "",
        "a",
        "\x00",
        "\ud800",
        "a" * 5000,
        "../..",
        "mine",
        "theirs",
    ),
    *("'; DROP TABLE memories; --", "%00", "🐈", "\u202e", [], {}, [[]], [None], {"a": {"b": []}}, {"id": "theirs"}),
    *(["x"] * 300, {"seconds": 1}, {"type": "text"}, [{"role": "user", "content": "x"}], "2026-01-01", "NaN"),
)
_MESSAGES = [{"role": "user", "content": "Who?"}]
_CHAT = {
    "model": "tiny",
    "messages": _MESSAGES,
    "memory": {"id": "mine", "write": True},
    "n": 1,
    "seed": 1,
    "stop": "x",
}


@dataclass(frozen=True)
class Sent:
    """A request before it is bytes."""

    method: str
    path: str
    body: Any = None
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


_MEMORY = "/v1/memories/mine"
BASES = (
    Sent("POST", "/v1/chat/completions", {**_CHAT, "stream": True, "logprobs": True, "top_logprobs": 2}),
    Sent("POST", "/v1/chat/completions", {**_CHAT, "temperature": 0.5, "max_tokens": 5}),
    Sent("POST", "/v1/completions", {"model": "tiny:mine", "prompt": ["a", "b"], "logprobs": 1, "stream": False}),
    Sent("POST", "/v1/responses", {"model": "tiny", "input": _MESSAGES, "instructions": "x", "stream": True}),
    Sent("POST", "/v1/memories", {"name": "other", "method": "full", "options": {"bits": 8}, "metadata": {"a": "b"}}),
    Sent("POST", "/v1/memories", {"name": "brief", "subject": "s", "expires_after": {"seconds": 100}}),
    Sent("GET", "/v1/memories", query={"limit": "2", "after": "mem_x", "order": "asc", "metadata[a]": "b"}),
    Sent("GET", _MEMORY),
    Sent("POST", _MEMORY, {"metadata": {"a": "b"}, "expires_after": None}),
    Sent("DELETE", "/v1/memories/brief"),
    Sent("DELETE", "/v1/memories", query={"subject": "s"}),
    Sent("POST", f"{_MEMORY}/writes", {"text": "More.", "source": "a", "if_version": 1, "stream": False}),
    Sent("POST", f"{_MEMORY}/writes", {"messages": _MESSAGES}, headers={"idempotency-key": "k"}),
    Sent("POST", f"{_MEMORY}/writes", headers={"content-type": "text/plain"}, raw=b"Text.", query={"source": "b"}),
    Sent(
        "POST",
        f"{_MEMORY}/writes",
        headers={"content-type": "multipart/form-data; boundary=b"},
        raw=b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nText.\r\n--b--\r\n',
    ),
    Sent("GET", f"{_MEMORY}/writes", query={"limit": "3", "after": "2"}),
    Sent("POST", f"{_MEMORY}/fork", {"name": "branch", "version": 1}),
    Sent("GET", f"{_MEMORY}/versions"),
    Sent("POST", f"{_MEMORY}/versions/1/restore"),
    Sent("DELETE", f"{_MEMORY}/versions/1"),
    Sent("GET", f"{_MEMORY}/content", query={"version": "1"}, headers={"range": "bytes=0-9"}),
    Sent("GET", "/v1/models/tiny:mine"),
    Sent("GET", "/v1/audit", query={"limit": "2"}),
    Sent("GET", "/metrics"),
)
_HEADERS = (
    *("x-byheart-memory", "content-type", "content-length", "host", "origin", "range", "idempotency-key"),
    *("if-none-match", "x-request-id"),
)
_QUERIES = ("limit", "after", "version", "subject", "metadata[", "metadata[a]", "name", "model", "x")
_NAMES = ("memory", "stream", "n", "model", "name", "options", "tools", "content", "id", "version", "text", "colour")


class Target:
    """A server with two tenants, of which one attacks the other."""

    def __init__(self, folder: Path) -> None:
        keys = folder / "keys.jsonl"
        self.key, theirs = make_key(keys, "mallory"), make_key(keys, "alice")
        self.memories, self.engine = Memories.at(folder), FakeEngine()
        bounds = Settings(body_bytes=30_000, text_bytes=30_000, state_bytes=100_000, body_seconds=2)
        self.app: Starlette = create_app(self.engine, self.memories, Accounts(keys), bounds)
        save_text(folder / "state", "Mine.")
        self.state = (folder / "state").read_bytes()
        self.write("theirs", SECRET, theirs)
        self.theirs = self.memories.of("alice").get("theirs")

    def write(self, name: str, text: str, key: str) -> None:
        """See that there is a memory of this name, and write a text into it."""
        asyncio.run(self.send(Sent("POST", "/v1/memories", {"name": name, "subject": "s"}), key))
        asyncio.run(self.send(Sent("POST", f"/v1/memories/{name}/writes", {"text": text}), key))

    async def send(self, sent: Sent, key: str, *, cut: int | None = None) -> tuple[int, bytes]:
        """The status and the body of the answer; 0 where there is none. ``cut``: bytes after which the client goes."""
        raw = sent.raw if sent.raw is not None else b"" if sent.body is None else _encode(sent.body)
        headers = {"host": "127.0.0.1", "authorization": f"Bearer {key}", "content-type": "application/json"}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": sent.method,
            "scheme": "http",
            "path": sent.path,
            "raw_path": quote(sent.path, errors="replace").encode(),
            "root_path": "",
            "query_string": "&".join(f"{_quote(k)}={_quote(v)}" for k, v in sent.query.items()).encode(),
            "headers": [
                (name.encode(), value.encode("latin-1", "replace"))
                for name, value in {**headers, **sent.headers}.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        pieces = [raw[start : start + 4096] for start in range(0, len(raw), 4096)] or [b""]
        waiting = [] if cut is not None else pieces
        status, answer, is_done = 0, b"", asyncio.Event()

        async def receive() -> dict[str, Any]:
            if waiting:
                piece = waiting.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(waiting)}
            if cut is None:
                await is_done.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, answer
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                answer += message.get("body", b"")
                if not message.get("more_body"):
                    is_done.set()

        await self.app(scope, receive, send)
        return status, answer


def _encode(body: Any) -> bytes:
    return json.dumps(body).encode()


def _quote(text: str) -> str:
    return quote(text, safe="", errors="replace")


def send_requests(folder: Path) -> Try:
    """Requests changed at random: no mistake of the server's, no answer that never ends, nothing of another tenant."""
    targets: dict[str, Target] = {}

    def attempt(number: int, random: Random) -> list[str]:
        if not targets:
            (folder / str(number)).mkdir()
            targets["here"] = Target(folder / str(number))
        target = targets["here"]
        problems = []
        for index in range(_BATCH):
            if index % _RENEWED == 0:
                target.write("mine", "Mine.", target.key)
            problems += _try(target, random)
        theirs = target.memories.of("alice").get("theirs")
        if (theirs.version, theirs.sha256) != (target.theirs.version, target.theirs.sha256):
            problems.append("another tenant's memory was changed")
        if target.engine.running:
            problems.append(f"{target.engine.running} answers that nobody reads were not let go of")
        return problems

    return attempt


def _try(target: Target, random: Random) -> Iterator[str]:
    sent = _change(target, random)
    cut = 0 if random.random() < 0.05 else None
    key = target.key if random.random() < 0.97 else random.choice(["", "x", target.key[:-1], "\xff"])
    shown = (f"{part!a:.150}" for part in (sent.query, sent.headers, sent.body, sent.raw))
    told = f"{sent.method} {sent.path[:60]!a} {' '.join(shown)}"
    try:
        status, answer = asyncio.run(asyncio.wait_for(target.send(sent, key, cut=cut), 10))
    except Exception as error:
        yield f"{told} -> {type(error).__name__}: {error!a:.200}"
        return
    if status == 500 or (status == 0 and cut is None):
        yield f"{told} -> {status} {answer[:200]!a}"
    if SECRET.encode() in answer:
        yield f"{told} -> what another tenant's memory holds"
    if status >= 400 and answer and not _says_a_code(answer):
        yield f"{told} -> {status} in another shape: {answer[:80]!a}"


def _says_a_code(answer: bytes) -> bool:
    """Whether this is an error as OpenAI's are."""
    try:
        return "code" in json.loads(answer)["error"]
    except (ValueError, TypeError, LookupError):
        return False


def _change(target: Target, random: Random) -> Sent:
    sent = _spoil_state(target, random) if random.random() < 0.08 else random.choice(BASES)
    for _ in range(random.choice([0, 1, 1, 1, 2])):
        sent = random.choice(_CHANGES)(sent, random.choice(_ODD), random)
    return sent


def _spoil_state(target: Target, random: Random) -> Sent:
    raw = bytearray(target.state)
    for _ in range(random.choice([0, 1, 5])):
        raw[random.randrange(len(raw))] = random.randrange(256)
    return Sent("PUT", "/v1/memories/back/content", raw=bytes(raw[: random.choice([None, 50, 8, -3])]))


def _change_path(sent: Sent, odd: Any, random: Random) -> Sent:
    parts = sent.path.split("/")
    parts[random.randrange(1, len(parts))] = str(odd)
    return replace(sent, path="/".join(parts))


def _change_query(sent: Sent, odd: Any, random: Random) -> Sent:
    return replace(sent, query={**sent.query, random.choice(_QUERIES): str(odd)})


def _change_body(sent: Sent, odd: Any, random: Random) -> Sent:
    return sent if sent.body is None else replace(sent, body=_changed(sent.body, odd, random))


def _change_header(sent: Sent, odd: Any, random: Random) -> Sent:
    value = random.choice([str(odd), "theirs", "multipart/form-data; boundary=", "bytes=5-2,0-,-0", "%ff", "-1"])
    return replace(sent, headers={**sent.headers, random.choice(_HEADERS): value.replace("\x00", "")})


def _change_bytes(sent: Sent, odd: Any, random: Random) -> Sent:
    raw = bytearray(sent.raw or (b"" if sent.body is None else _encode(sent.body)) or b"x")
    place = random.randrange(len(raw))
    raw[place : place + random.choice([0, 1, 9])] = random.randbytes(random.choice([0, 1, 4]))
    return replace(sent, raw=bytes(raw))


def _change_method(sent: Sent, odd: Any, random: Random) -> Sent:
    return replace(sent, method=random.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]))


_CHANGES = (_change_path, _change_query, *[_change_body] * 3, _change_header, _change_bytes, _change_method)


def _changed(body: Any, odd: Any, random: Random) -> Any:
    """A body with one value changed, somewhere in it."""
    if isinstance(body, dict) and body and random.random() < 0.9:
        name = random.choice([*body, random.choice(_NAMES)])
        return {**body, name: _changed(body[name], odd, random) if name in body else odd}
    if isinstance(body, list) and body and random.random() < 0.7:
        place = random.randrange(len(body))
        return [*body[:place], _changed(body[place], odd, random), *body[place + 1 :]]
    return odd


ATTACKS = (
    Attack(
        "server.requests",
        "requests changed at random: a mistake of the server, no end, something of another tenant",
        send_requests,
        100_000,
        batch=_BATCH,
        seconds=300,
    ),
)
