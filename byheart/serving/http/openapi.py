"""The OpenAPI description, made from the table of routes and the shapes of their bodies."""

from __future__ import annotations

import re
from typing import Any

from pydantic.json_schema import models_json_schema

from byheart.provenance import versions
from byheart.serving.http.operations import OPERATIONS, Operation

_PART = re.compile(r"\{(\w+)(?::\w+)?\}")
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def describe() -> dict[str, Any]:
    """The whole document."""
    shapes = {shape for each in OPERATIONS for shape in (each.body, each.query, each.answer) if shape is not None}
    ordered = sorted(shapes, key=lambda shape: shape.__name__)
    references, schemas = models_json_schema(
        [(shape, "validation") for shape in ordered], ref_template="#/components/schemas/{model}"
    )
    named = {shape: references[shape, "validation"] for shape in ordered}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        path = _PART.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _describe(operation, named, schemas["$defs"])
    return {
        "openapi": "3.1.0",
        "info": {"title": "byheart", "version": versions()["byheart"]},
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe(operation: Operation, named: Any, shapes: dict[str, Any]) -> dict[str, Any]:
    answer = named[operation.answer] if operation.answer else {"type": "object"}
    if operation.is_list:
        answer = {"type": "object", "properties": {"data": {"type": "array", "items": answer}}}
    content = {operation.answer_type: {"schema": answer}}
    if operation.is_streamed:
        content["text/event-stream"] = {}
    found: dict[str, Any] = {
        "operationId": operation.handler.__name__,
        "summary": (operation.handler.__doc__ or "").strip().partition("\n")[0],
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation, shapes)],
        "security": [] if operation.is_open else [{"key": []}],
        "responses": {
            str(operation.status): {"description": "Done", "content": content},
            "default": {
                "description": "An error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if operation.body is not None or operation.method == "PUT":
        schema = named[operation.body] if operation.body else {"type": "string", "format": "binary"}
        bodies = {kind: {"schema": schema if "json" in kind else {}} for kind in operation.body_types}
        found["requestBody"] = {"required": True, "content": bodies}
    return found


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in _PART.findall(path)
    ]


def _query_parameters(operation: Operation, shapes: dict[str, Any]) -> list[dict[str, Any]]:
    shape = shapes[operation.query.__name__] if operation.query else {"properties": {}}
    required = shape.get("required", ())
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": schema,
            **({"style": "deepObject", "explode": True} if schema.get("type") == "object" else {}),
        }
        for name, schema in shape["properties"].items()
    ]
