"""GET /v1/models and /v1/methods: what a client may choose from."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from byheart.methods import defaults, find
from byheart.serving.http.call import Call, in_thread
from byheart.serving.http.choosing import split_model
from byheart.serving.http.wire.encoding import json_response

_MOST = 100


async def list_models(call: Call) -> Response:
    """The models, and each with its newest memories: programs that only know a model's name choose one so."""
    served = call.server.engine.models
    page = await in_thread(call.memories.list, limit=_MOST)
    named = [
        (f"{memory.model}:{memory.name}", memory) for memory in page.data if memory.name and memory.model in served
    ]
    memories = [_model(name, int(memory.created_at.timestamp()), memory.id) for name, memory in named]
    sizes = call.server.engine.slot_bytes
    bases = [{**_model(name), "slot_bytes": sizes[name]} for name in served]
    return json_response({"object": "list", "data": [*bases, *memories]})


async def get_model(call: Call) -> Response:
    """One of them."""
    name = call.path("model")
    _, memory = split_model(name, call.server.engine.models)
    if memory is None:
        return json_response(_model(name))
    found = await in_thread(call.memories.get, memory)
    return json_response(_model(name, int(found.created_at.timestamp()), found.id))


def _model(name: str, created: int = 0, memory: str | None = None) -> dict[str, Any]:
    model: dict[str, Any] = {"id": name, "object": "model", "created": created, "owned_by": "byheart"}
    return model if memory is None else {**model, "memory": memory}


async def list_methods(call: Call) -> Response:
    """How a memory can be made: the methods, with their options and defaults."""
    kinds = [(name, find(name)) for name in call.server.settings.methods]
    data = [
        {"id": name, "object": "method", "summary": _first_line(kind), "options": defaults(kind)}
        for name, kind in kinds
    ]
    return json_response({"object": "list", "data": data})


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0].replace("``", "")
