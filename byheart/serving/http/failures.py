"""What a client is told when something fails: OpenAI's shape, a status, and a code that does not change.

A message never says where on the server a file lies; what nobody expected is logged, and only its request is named.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.responses import Response

from byheart.errors import (
    BusyError,
    ByheartError,
    ConflictError,
    CorruptStateError,
    InputError,
    MissingError,
    ModelError,
    QuotaError,
    StateError,
    StateMismatchError,
    StoreError,
    UnavailableError,
    UnknownNameError,
    UsageError,
)
from byheart.serving.http.wire.encoding import json_response

log = logging.getLogger(__name__)

CODES: tuple[tuple[type[Exception], int, str], ...] = (
    (MissingError, 404, "memory_not_found"),
    (ConflictError, 409, "memory_version_conflict"),
    (QuotaError, 403, "quota_exceeded"),
    (UnavailableError, 503, "store_unavailable"),
    (StoreError, 400, "invalid_memory"),
    (BusyError, 429, "queue_full"),
    (CorruptStateError, 422, "memory_damaged"),
    (StateMismatchError, 409, "memory_mismatch"),
    (StateError, 422, "memory_unusable"),
    (UnknownNameError, 400, "unknown_name"),
    (UsageError, 400, "invalid_value"),
    (InputError, 400, "invalid_text"),
    (ModelError, 503, "model_unusable"),
)
"""Error of the library -> status and code; the first that fits."""
_STATUS_CODES = {404: "route_not_found", 405: "method_not_allowed"}
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PATHS = re.compile(r"'(?:/|[A-Za-z]:\\)[^']*'")


class Refusal(Exception):
    """What is said of a request that is not done, where it is not an error of the library.

    Args:
        param: the field of the request that is wrong.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after


@dataclass(frozen=True)
class Failure:
    """An error as it is told."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's object."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """As an answer of its own."""
        return json_response(self.body, status=self.status, headers=self.headers)


def explain(error: BaseException, request_id: str) -> Failure:
    """What a client is told of an error; one that nobody expected is logged."""
    if isinstance(error, Refusal):
        return Failure(error.status, error.code, str(error), error.param, _headers(error.status, error.retry_after))
    if isinstance(error, HTTPException):
        code = _STATUS_CODES.get(error.status_code, "invalid_request")
        return Failure(error.status_code, code, str(error.detail), headers=dict(error.headers or {}))
    if _is_full(error) or _is_full(error.__cause__):
        return Failure(507, "storage_full", "The server has no room for this; nothing was changed.")
    if isinstance(error, OSError) or (isinstance(error, StateError) and isinstance(error.__cause__, OSError)):
        log.error("%s could not use the store: %s", request_id, error)
        headers = _headers(503, 1)
        return Failure(503, "store_unavailable", "The server's store cannot be used; try later.", headers=headers)
    if isinstance(error, ByheartError):
        for kind, status, code in CODES:
            if isinstance(error, kind):
                retry_after = 1.0 if status == 503 else getattr(error, "retry_after", None)
                return Failure(status, code, _PATHS.sub("the file", str(error)), headers=_headers(status, retry_after))
    if isinstance(error, MemoryError):
        return Failure(503, "out_of_memory", "The server has not enough memory for this; send less, or try later.")
    log.error("%s failed", request_id, exc_info=error)
    return Failure(500, "internal_error", f"The server has made a mistake; its log has request {request_id}.")


def _headers(status: int, retry_after: float | None) -> dict[str, str]:
    """What clients look at before they try again."""
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if retry_after is not None:
        headers |= {"retry-after": str(max(1, round(retry_after))), "retry-after-ms": str(round(retry_after * 1000))}
    return headers


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
