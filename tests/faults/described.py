"""Requests that the server's own description allows, or forbids: schemathesis makes them, and checks the answers."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.faults.attack import Attack, Try
from tests.faults.requests import SECRET, Target

_BATCH = 50
_HOST = {"host": "127.0.0.1"}
# Not those that tell from the answer whether the request was valid: a valid one may ask for what is not there.
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


def follow_description(folder: Path) -> Try:
    """Requests to one operation after another: each answer is as the description says, and tells nothing of others."""
    made: list[tuple[Target, list[APIOperation]]] = []

    def attempt(number: int, random: Random) -> list[str]:
        if not made:
            (folder / str(number)).mkdir()
            target = Target(folder / str(number))
            described = schemathesis.openapi.from_asgi("/openapi.json", target.app, headers=_HOST)
            made.append((target, [found.ok() for found in described.get_all_operations()]))
        target, operations = made[0]
        target.write("mine", "Mine.", target.key)
        turn, place = divmod(number, len(operations))
        return _send(target, operations[place], _MODES[turn % len(_MODES)], random.getrandbits(32))

    return attempt


def _send(target: Target, operation: APIOperation, mode: GenerationMode, number: int) -> list[str]:
    problems: list[str] = []

    @seed(number)
    @settings(
        max_examples=_BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        problems.extend(_problems(target, case))

    try:
        send()
    except Unsatisfiable:
        # There is nothing that the description forbids.
        return _send(target, operation, GenerationMode.POSITIVE, number)
    return problems


def _problems(target: Target, case: Any) -> list[str]:
    told = f"{case.method} {case.formatted_path[:80]!a} {case.query!a:.100} {case.body!a:.150}"
    answer = case.call(headers={**_HOST, "authorization": f"Bearer {target.key}"})
    found = [f"{told} -> what another tenant's memory holds"] if SECRET.encode() in answer.content else []
    try:
        case.validate_response(answer, checks=_CHECKS)
    except (Failure, FailureGroup) as error:
        parts = error.exceptions if isinstance(error, FailureGroup) else [error]
        found += [f"{told} -> {answer.status_code} {type(part).__name__}: {part!s:.200}" for part in parts]
    return found


ATTACKS = (
    Attack(
        "server.described",
        "requests as the description allows or forbids: a mistake of the server, an answer it does not describe",
        follow_description,
        10_000,
        batch=_BATCH,
        seconds=300,
    ),
)
