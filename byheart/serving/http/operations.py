"""The table of routes: what is at which path, who may use it, and what goes in and comes out."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from byheart.serving.http.call import Handler
from byheart.serving.http.routes import chat, completions, content, memories, models, responses, status, writes
from byheart.serving.http.wire import memories as objects, questions


@dataclass(frozen=True)
class Operation:
    """A method of a path.

    Args:
        body, query, answer: their shapes, where they have one; ``answer_type`` is that of anything but JSON.
        is_streamed: whether the answer may come as events.
        is_open: whether it needs no key.
    """

    method: str
    path: str
    handler: Handler
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    is_list: bool = False
    status: int = 200
    is_streamed: bool = False
    is_open: bool = False
    answer_type: str = "application/json"
    body_types: tuple[str, ...] = ("application/json",)


_MEMORY = "/v1/memories/{memory}"
_VERSION = f"{_MEMORY}/versions/{{version}}"

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/health", status.get_health, is_open=True),
    Operation("GET", "/ready", status.get_ready, is_open=True),
    Operation("GET", "/metrics", status.get_metrics, answer_type="text/plain"),
    Operation("GET", "/v1/models", models.list_models),
    Operation("GET", "/v1/models/{model:path}", models.get_model),
    Operation("GET", "/v1/methods", models.list_methods),
    Operation("POST", "/v1/chat/completions", chat.create_chat, body=questions.ChatBody, is_streamed=True),
    Operation(
        "POST", "/v1/completions", completions.create_completion, body=questions.CompletionBody, is_streamed=True
    ),
    Operation("POST", "/v1/responses", responses.create_response, body=questions.ResponseBody, is_streamed=True),
    Operation(
        "POST",
        "/v1/memories",
        memories.create_memory,
        body=objects.NewMemory,
        answer=objects.MemoryObject,
        status=201,
    ),
    Operation(
        "GET",
        "/v1/memories",
        memories.list_memories,
        query=memories.Listed,
        answer=objects.MemoryObject,
        is_list=True,
    ),
    Operation("DELETE", "/v1/memories", memories.erase_subject, query=memories.Erased, answer=objects.DeletedObject),
    Operation("GET", _MEMORY, memories.get_memory, answer=objects.MemoryObject),
    Operation("POST", _MEMORY, memories.update_memory, body=objects.ChangedMemory, answer=objects.MemoryObject),
    Operation("DELETE", _MEMORY, memories.delete_memory, query=memories.DeletedAt, answer=objects.DeletedObject),
    Operation(
        "POST",
        f"{_MEMORY}/writes",
        writes.create_write,
        body=objects.NewWrite,
        answer=objects.WriteObject,
        is_streamed=True,
        body_types=("application/json", "text/plain", "multipart/form-data"),
    ),
    Operation(
        "GET",
        f"{_MEMORY}/writes",
        memories.list_writes,
        query=memories.ListedByNumber,
        answer=objects.VersionObject,
        is_list=True,
    ),
    Operation(
        "POST",
        f"{_MEMORY}/fork",
        memories.fork_memory,
        body=objects.NewFork,
        answer=objects.MemoryObject,
        status=201,
    ),
    Operation(
        "GET",
        f"{_MEMORY}/versions",
        memories.list_versions,
        query=memories.ListedByNumber,
        answer=objects.VersionObject,
        is_list=True,
    ),
    Operation("POST", f"{_VERSION}/restore", memories.restore_version, answer=objects.VersionObject),
    Operation("DELETE", _VERSION, memories.delete_version, answer=objects.DeletedObject),
    Operation(
        "GET", f"{_MEMORY}/content", content.export_content, query=content.Exported, answer_type=content.MEDIA_TYPE
    ),
    Operation(
        "PUT",
        f"{_MEMORY}/content",
        content.import_content,
        query=content.Imported,
        answer=objects.VersionObject,
        body_types=(content.MEDIA_TYPE,),
    ),
    Operation("GET", "/v1/usage", memories.get_usage, answer=objects.UsageObject),
    Operation(
        "GET", "/v1/audit", memories.list_audit, query=memories.ListedByNumber, answer=objects.AuditObject, is_list=True
    ),
)
