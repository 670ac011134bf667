"""Which model and which memory a request means, however it says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from urllib.parse import unquote

from byheart.errors import MissingError
from byheart.serving.http.call import Call, in_thread
from byheart.serving.http.failures import Refusal
from byheart.serving.http.wire.fields import MemoryChoice
from byheart.serving.jobs import MemoryRef
from byheart.store.memories import TenantMemories
from byheart.store.values import Memory, Version

HEADER = "x-byheart-memory"


@dataclass(frozen=True)
class Choice:
    """A served model, and a memory of it or none; ``version`` is None where the memory is empty."""

    model: str
    memory: Memory | None = None
    version: Version | None = None
    is_written: bool = False
    has_version: bool = False
    """Whether the request has named a version."""


def split_model(name: str, served: Iterable[str]) -> tuple[str, str | None]:
    """``smollm2:alice`` as model and memory; a name that is served is one as a whole. Raises Refusal."""
    known = list(served)
    base, colon, memory = name.rpartition(":")
    if name in known:
        return name, None
    if colon and base in known and memory:
        return base, memory
    raise Refusal(
        404,
        "model_not_found",
        f"This server has no model '{name[:200]}'; it has {', '.join(known)}, and NAME:MEMORY for a memory.",
        param="model",
    )


def reference(memories: TenantMemories, version: Version | None) -> MemoryRef | None:
    """A version as the engine takes it."""
    return None if version is None else MemoryRef(version.key, partial(memories.fetch, version))


async def choose(call: Call, model: str | None, memory: str | MemoryChoice | None) -> Choice:
    """What a question means: body ``memory``, the header, or the end of ``model``. Raises Refusal, StoreError."""
    served = list(call.server.engine.models)
    base, suffix = (None, None) if model is None else split_model(model, served)
    choice = MemoryChoice(id=memory) if isinstance(memory, str) else memory
    header = call.request.headers.get(HEADER)
    names = [choice.id if choice else None, unquote(header) if header else None, suffix]
    found = [await in_thread(call.memories.get, name) for name in dict.fromkeys(names) if name]
    if not found:
        return Choice(base or served[0])
    if len({each.id for each in found}) > 1:
        raise Refusal(400, "memory_ambiguous", "The request names two memories that differ; name one.", param="memory")
    chosen = found[0]
    if base not in (None, chosen.model):
        raise Refusal(409, "memory_mismatch", f"The memory is of model '{chosen.model}', not '{base}'.", param="model")
    require_served(call, chosen)
    await in_thread(call.memories.touch, chosen.id)
    number = choice.version if choice else None
    return Choice(
        chosen.model,
        chosen,
        await newest(call, chosen, number),
        is_written=bool(choice and choice.write),
        has_version=number is not None,
    )


def require_served(call: Call, memory: Memory) -> None:
    """Raise Refusal for a memory of a model that this server has not: it opens none because a memory says so."""
    if memory.model not in call.server.engine.models:
        raise Refusal(
            409,
            "memory_mismatch",
            f"The memory is of model '{memory.model}', which is not served here.",
            param="memory",
        )


async def newest(call: Call, memory: Memory, number: int | None = None) -> Version | None:
    """A version of a memory by number, or its newest; None where nothing was written. Raises Refusal."""
    if memory.version == 0 and number is None:
        return None
    try:
        return await in_thread(call.memories.version, memory.id, number)
    except MissingError as error:
        raise Refusal(404, "version_not_found", str(error), param="version") from None
