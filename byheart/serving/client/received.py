"""What a server has sent, as values; UnavailableError says so where it is not what byheart's server sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byheart.errors import CorruptStateError, UnavailableError
from byheart.files import parse_json
from byheart.protocol.header_file import parse_header
from byheart.protocol.schema import validate
from byheart.protocol.state import Header, Written
from byheart.store.values import Deleted, Memory, Version


@dataclass(frozen=True)
class Listed:
    """A part of a list; the rest comes after ``last_id``."""

    data: list[dict[str, Any]]
    has_more: bool
    last_id: str | None = None


@dataclass(frozen=True)
class AnswerEvent:
    """A piece of an answer. ``version`` is that of the memory that is read, 0 without one; ``tokens`` come last."""

    text: str = ""
    version: int = 0
    tokens: int = 0


def take_page(fields: Mapping[str, Any]) -> Listed:
    """A part of a list."""
    taken: Listed = _take(Listed, fields)
    return taken


def take_memory(fields: Mapping[str, Any]) -> Memory:
    """A memory."""
    taken: Memory = _take(Memory, fields)
    return taken


def take_version(fields: Mapping[str, Any]) -> Version:
    """A version. Its ``key`` stays with the server, and is empty."""
    names = {"memory_id": fields.get("memory"), "number": fields.get("version"), "key": ""}
    taken: Version = _take(Version, {**fields, **names})
    return taken


def take_written(fields: Mapping[str, Any]) -> Written:
    """What was written."""
    entry = _take(dict[str, Any], fields.get("entry"))
    taken: Written = _take(Written, {name: entry.get(name) for name in ("source", "at", "tokens", "characters")})
    return taken


def take_deleted(fields: Mapping[str, Any]) -> Deleted:
    """What is gone."""
    taken: Deleted = _take(Deleted, {name: fields.get(name) for name in ("memories", "versions", "bytes", "pending")})
    return taken


def take_count(fields: Mapping[str, Any], name: str) -> int:
    """One of several numbers."""
    taken: int = _take(int, fields.get(name))
    return taken


def take_answer(event: Mapping[str, Any]) -> AnswerEvent:
    """An event of a conversation's answer."""
    try:
        texts = [choice["delta"].get("content") or "" for choice in event["choices"]]
        memory, usage = event.get("memory") or {}, event.get("usage") or {}
        found = {"version": memory.get("version", 0), "tokens": usage.get("completion_tokens", 0)}
        taken: AnswerEvent = _take(AnswerEvent, {"text": "".join(texts), **found})
        return taken
    except (KeyError, TypeError, AttributeError) as error:
        raise _unexpected(error) from error


def take_header(raw: bytes, path: Path) -> Header:
    """The header of a state file, of which ``raw`` is what says where the tensors are. Raises StateError."""
    try:
        stored = parse_json(raw.decode())["__metadata__"]["byheart"]
        return parse_header(path, stored)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptStateError(f"'{path}' has a header that cannot be read ({error}).") from error


def _take(kind: Any, fields: object) -> Any:
    try:
        return validate(kind, fields)
    except ValueError as error:
        raise _unexpected(error) from error


def _unexpected(error: Exception) -> UnavailableError:
    return UnavailableError(f"The server's answer is not one of this version of byheart's: {error}.")
