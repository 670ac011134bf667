"""What is sent again and what is not, and servers that fail; none of it needs PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from byheart import Client, errors
from byheart.serving.client import sending
from tests.serving.live import serving

ROOT = Path(__file__).parents[2]
QUESTION = "What is the cat called?"


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8321",
        "ftp://host",
        "http://",
        "http://a:99999",
        "http://u:p@a",
        "http://a b",
        "http://[::1",
        "http://256.1.1.1",
    ],
)
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(errors.UsageError, match=r"A server is named like|goes into api_key|is no address"):
        Client(url)


Answer = Callable[[Request], Response]


class Script:
    """A server that gives answers in turn, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.keys: list[str | None] = []

    async def __call__(self, request: Request) -> Response:
        await request.body()
        self.keys.append(request.headers.get("idempotency-key"))
        return self.answers.pop(0)(request)


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[Script, str]]:
    script = Script()
    routes = [Route("/{path:path}", script.__call__, methods=["GET", "POST", "DELETE"])]
    with serving(Starlette(routes=routes)) as address:
        yield script, address


@pytest.fixture
def failing(scripted: tuple[Script, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Script, Client, list[float]]:
    pauses: list[float] = []
    monkeypatch.setattr(sending.time, "sleep", pauses.append)
    monkeypatch.setattr(sending.random, "uniform", lambda least, most: 1.0)
    script, address = scripted
    script.answers, script.keys = [], []
    return script, Client(address, "k", retries=2), pauses


def refuse(status: int, code: str, **headers: str) -> Answer:
    return lambda request: JSONResponse({"error": {"code": code, "message": "No."}}, status, headers)


def events(*values: dict[str, Any], done: bool = True) -> Answer:
    text = "".join(f"data: {json.dumps(value)}\n\n" for value in values) + ("data: [DONE]\n\n" if done else "")
    return lambda request: PlainTextResponse(text, media_type="text/event-stream")


MEMORY = {
    "id": "mem_x", "name": "cat", "model": "tiny", "method": "full", "options": {}, "metadata": {}, "subject": "",
    "version": 1, "created_at": 1, "last_active_at": 1,
}  # fmt: skip
WRITTEN = {"entry": {"source": "text", "at": "2026-01-01T00:00:00+00:00", "tokens": 1, "characters": 4}}
Failing = tuple[Script, Client, list[float]]


def test_a_busy_server_is_asked_again_when_it_wants(failing: Failing) -> None:
    script, client, pauses = failing
    script.answers = [refuse(429, "queue_full", **{"retry-after-ms": "70"}), refuse(503, "store_unavailable")]
    script.answers.append(lambda request: JSONResponse(MEMORY))
    assert client.memory("cat").describe().name == "cat"
    assert pauses == [0.07, 1.0]


def test_it_gives_up_with_what_was_said_last(failing: Failing) -> None:
    script, client, _ = failing
    script.answers = [refuse(429, "queue_full", **{"retry-after-ms": "1500"})] * 3
    with pytest.raises(errors.BusyError, match="No") as refused:
        client.memory("cat").describe()
    assert refused.value.retry_after == 1.5
    assert not script.answers


def test_a_write_whose_answer_was_lost_is_sent_again_under_the_same_key(failing: Failing) -> None:
    script, client, _ = failing
    script.answers = [lambda request: JSONResponse(MEMORY), events({"done": 1, "total": 2}, done=False)]
    script.answers += [events({"error": {"code": "server_stopped", "message": "Stopped."}}), events(WRITTEN)]
    assert client.memory("cat").write("Muck").tokens == 1
    assert script.keys[1]
    assert script.keys[1:] == [script.keys[1]] * 3


def test_what_may_not_be_done_twice_is_sent_once(failing: Failing) -> None:
    script, client, pauses = failing
    script.answers = [refuse(503, "store_unavailable")]
    with pytest.raises(errors.UnavailableError):
        client.memory("cat").restore(1)
    assert pauses == []


def test_an_answer_that_is_cut_off_says_so(failing: Failing) -> None:
    script, client, _ = failing
    piece = {"choices": [{"delta": {"content": "Mu"}}], "memory": {"id": "mem_x", "version": 1}}
    script.answers = [events(piece, done=False)]
    stream = client.memory("cat").stream(QUESTION)
    assert next(stream) == "Mu"
    with pytest.raises(errors.UnavailableError, match="cut off"):
        next(stream)


@pytest.mark.parametrize("text", ["<html>", "[]", "{}", '{"id": 3}'])
def test_what_is_no_server_of_byheart_is_said(failing: Failing, text: str) -> None:
    script, client, _ = failing
    script.answers = [lambda request: PlainTextResponse(text)]
    with pytest.raises(errors.UnavailableError, match=r"no answer of a byheart server|not one of this version"):
        client.memory("cat").describe()
    script.answers = [lambda request: PlainTextResponse(text, 404)]
    with pytest.raises(errors.UsageError, match="is no byheart server"):
        client.memory("cat").describe()


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending.time, "sleep", lambda seconds: None)
    with pytest.raises(errors.UnavailableError, match=r"No server answers at http://127.0.0.1:9"):
        list(Client("http://127.0.0.1:9").memories())


def test_it_needs_neither_pytorch_nor_a_servers_packages() -> None:
    program = (
        "import sys, byheart; byheart.Client('http://127.0.0.1:9').memory('cat')\n"
        "print(sorted({'torch', 'transformers', 'starlette', 'uvicorn', 'sqlalchemy', 'obstore'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
