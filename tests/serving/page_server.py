"""A server with canned answers, to try the page against: the routes that the page uses, and no model.

A question that says ``slow`` is answered until the client hangs up, ``break`` fails after some words, ``busy`` is
refused. A text that says ``refuse`` is refused once.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from byheart.serving.http.page import page_routes

KEY = "a-key-made-up-for-this-test"
_BYTES, _FULL_BYTES = 770, 23_040
_METHODS: dict[str, dict[str, Any]] = {
    "compact": {"times": 30, "chunk_tokens": 2048, "opening": []},
    "rome": {"steps": 20, "layers": []},
    "full": {"chunk_tokens": 1024, "bits": 16},
}
_SIZES = ("tokens", "characters", "slots", "bytes")


class Canned:
    """What the server holds, and the bodies of the questions that it was asked."""

    def __init__(self) -> None:
        self.memories: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, list[dict[str, Any]]] = {}
        self.texts: list[str] = []
        self.keys: list[str] = []
        self.refused: set[str] = set()
        self.asked: list[dict[str, Any]] = []
        self.hung_up = 0
        self.answer = "From {memory}: the ship's cat is called Muck, and <b>sleeps</b> in the engine room."

    def create(self, body: dict[str, Any], **fields: Any) -> dict[str, Any]:
        if any(body["name"] == memory["name"] for memory in self.memories.values()):
            raise HTTPException(409, f"There is a memory '{body['name']}' already; choose another name.")
        key = f"mem_{len(self.memories):024d}"
        sizes = {"version": 0, "bytes": 0, "slots": 0, "tokens": 0, "characters": 0}
        stated = {"name": body["name"], "model": body.get("model", "smollm2"), "method": body.get("method", "compact")}
        times = {"created_at": 1795000000, "last_active_at": 1795003600, "expires_at": None}
        options = {"options": body.get("options", {}), "parent": None}
        self.memories[key] = {"id": key, "object": "memory", **stated, **options, **sizes, **times, **fields}
        self.versions[key] = []
        return self.memories[key]

    def write(self, key: str, source: str, text: str) -> dict[str, Any]:
        added = {"tokens": max(1, len(text) // 4), "characters": len(text)}
        memory = self.memories[key]
        sizes = {name: memory[name] + added[name] for name in added}
        entry = {"source": source, "at": "2026-11-30T10:00:00+00:00", **added}
        sizes |= {"slots": sizes["tokens"], "bytes": sizes["tokens"] * _BYTES}
        self.texts.append(text)
        return {**self.add_version(key, "write", sizes, entry), "object": "memory.write"}

    def add_version(
        self, key: str, operation: str, values: dict[str, Any], entry: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        memory, sizes = self.memories[key], {name: values[name] for name in _SIZES}
        memory |= {"version": memory["version"] + 1, **sizes}
        made = {"object": "memory.version", "memory": key, "version": memory["version"], "operation": operation}
        self.versions[key].insert(0, {**made, **sizes, "created_at": 1795003600, "entry": entry or {}})
        return self.versions[key][0]


def _app(canned: Canned) -> Starlette:
    return Starlette(
        routes=[
            *page_routes(),
            Route("/v1/models", _models),
            Route("/v1/methods", _methods),
            Route("/v1/memories", _memories, methods=["GET", "POST"]),
            Route("/v1/memories/{id}", _memory, methods=["GET", "POST", "DELETE"]),
            Route("/v1/memories/{id}/writes", _writes, methods=["GET", "POST"]),
            Route("/v1/memories/{id}/versions", _versions),
            Route("/v1/memories/{id}/versions/{number:int}/restore", _restore, methods=["POST"]),
            Route("/v1/memories/{id}/fork", _fork, methods=["POST"]),
            Route("/v1/chat/completions", _chat, methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, canned)],
        exception_handlers={HTTPException: _explain},
    )


class _Guard:
    """Asks for the key, and hands each request what the server holds."""

    def __init__(self, app: Any, canned: Canned) -> None:
        self.app, self.canned = app, canned

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            scope.setdefault("state", {})["canned"] = self.canned
            if Request(scope).headers.get("authorization") != f"Bearer {KEY}":
                error = {"error": {"message": "This key is not known. Enter the key that the server printed."}}
                await JSONResponse(error, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _explain(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = {"retry-after": "2"} if status == 429 else {}
    said = getattr(error, "detail", "")
    return JSONResponse({"error": {"message": said, "type": "x", "param": None, "code": "x"}}, status, headers)


def _found(request: Request) -> tuple[Canned, str]:
    canned: Canned = request.state.canned
    if (key := request.path_params["id"]) not in canned.memories:
        raise HTTPException(404, "There is no such memory.")
    return canned, key


def _list(request: Request, items: list[dict[str, Any]], name: str) -> Response:
    limit, after = int(request.query_params.get("limit", 20)), request.query_params.get("after")
    start = next((index + 1 for index, item in enumerate(items) if str(item[name]) == after), 0)
    data = items[start : start + limit]
    last = str(data[-1][name]) if data else None
    return JSONResponse({"object": "list", "data": data, "has_more": start + limit < len(items), "last_id": last})


async def _models(request: Request) -> Response:
    canned: Canned = request.state.canned
    models = [{"id": "smollm2", "object": "model", "slot_bytes": _FULL_BYTES}]
    models += [{"id": f"smollm2:{each['name']}", "memory": each["id"]} for each in canned.memories.values()]
    return JSONResponse({"object": "list", "data": models})


async def _methods(request: Request) -> Response:
    methods = [{"id": name, "summary": f"Keeps what {name} keeps.", "options": _METHODS[name]} for name in _METHODS]
    return JSONResponse({"object": "list", "data": methods})


async def _memories(request: Request) -> Response:
    canned: Canned = request.state.canned
    if request.method == "POST":
        return JSONResponse(canned.create(await request.json()), 201)
    return _list(request, list(canned.memories.values())[::-1], "id")


async def _memory(request: Request) -> Response:
    canned, key = _found(request)
    if request.method == "POST":
        canned.memories[key] |= await request.json()
    if request.method == "DELETE":
        del canned.memories[key]
        return JSONResponse({"id": key, "object": "memory.deleted", "deleted": True})
    return JSONResponse(canned.memories[key])


async def _writes(request: Request) -> Response:
    canned, key = _found(request)
    if request.method == "GET":
        return _list(request, [each for each in canned.versions[key] if each["entry"]], "version")
    body = await request.json()
    canned.keys.append(request.headers["idempotency-key"])
    if "refuse" in body["text"] and body["text"] not in canned.refused:
        canned.refused.add(body["text"])
        raise HTTPException(503, "The store does not answer. Try again.")
    return StreamingResponse(_write(canned, key, body), media_type="text/event-stream")


async def _write(canned: Canned, key: str, body: dict[str, Any]) -> AsyncIterator[str]:
    for done in (0, 512, 1024):
        yield _event({"object": "memory.write.progress", "done": done, "total": 1024})
        await asyncio.sleep(0.05)
    yield _event(canned.write(key, body["source"], body["text"]))


async def _versions(request: Request) -> Response:
    canned, key = _found(request)
    return _list(request, canned.versions[key], "version")


async def _restore(request: Request) -> Response:
    canned, key = _found(request)
    old = next(each for each in canned.versions[key] if each["version"] == request.path_params["number"])
    return JSONResponse(canned.add_version(key, "restore", old))


async def _fork(request: Request) -> Response:
    canned, key = _found(request)
    body, old = await request.json(), canned.memories[key]
    same = {name: old[name] for name in ("options", "method", "model")}
    made = canned.create(body, parent={"id": key, "version": body["version"]}, **same)
    canned.add_version(made["id"], "fork", old)
    return JSONResponse(made, 201)


async def _chat(request: Request) -> Response:
    canned: Canned = request.state.canned
    body = await request.json()
    canned.asked.append(body)
    if "busy" in body["messages"][-1]["content"]:
        raise HTTPException(429, "Too many questions wait.")
    return StreamingResponse(_answer(canned, body), media_type="text/event-stream")


def _read(canned: Canned, body: dict[str, Any]) -> dict[str, Any] | None:
    """The memory that a question is about."""
    memory = body.get("memory")
    return canned.memories[memory["id"] if isinstance(memory, dict) else memory] if memory else None


async def _answer(canned: Canned, body: dict[str, Any]) -> AsyncIterator[str]:
    question = body["messages"][-1]["content"]
    memory = _read(canned, body)
    words = (canned.answer.format(memory=memory["name"]) if memory else "I have not read about that.").split(" ")
    if "slow" in question:
        words *= 1000
    try:
        for index, word in enumerate(words):
            if "break" in question and index == 4:
                yield _event({"error": {"message": "The engine was stopped. Ask again.", "code": "x"}})
                yield "data: [DONE]\n\n"
                return
            yield _event({"choices": [{"index": 0, "delta": {"content": f"{' ' if index else ''}{word}"}}]})
            await asyncio.sleep(0.01)
    except (asyncio.CancelledError, GeneratorExit):
        canned.hung_up += 1
        raise
    yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    cached = memory["slots"] if memory else 0
    usage = {"prompt_tokens": cached + 24, "completion_tokens": len(words)}
    usage |= {"prompt_tokens_details": {"cached_tokens": cached}}
    yield _event({"choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


@contextmanager
def serving() -> Iterator[tuple[str, Canned]]:
    """The server on loopback, in a thread; gives its address and what it holds."""
    canned = Canned()
    server = uvicorn.Server(uvicorn.Config(_app(canned), port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", canned
    finally:
        server.should_exit = True
        thread.join()
