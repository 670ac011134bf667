"""What a server refuses, as the library's own errors: the other side of ``failures``, which needs no server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

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
    UsageError,
)

T = TypeVar("T")

ERRORS: dict[str, type[ByheartError]] = {
    **dict.fromkeys(("memory_not_found", "version_not_found"), MissingError),
    **dict.fromkeys(("memory_version_conflict", "memory_exists"), ConflictError),
    **dict.fromkeys(("queue_full", "rate_limited", "server_busy", "out_of_memory"), BusyError),
    **dict.fromkeys(("store_unavailable", "storage_full", "server_stopped", "internal_error"), UnavailableError),
    **dict.fromkeys(("invalid_text", "body_too_large", "body_too_slow"), InputError),
    "quota_exceeded": QuotaError,
    "invalid_memory": StoreError,
    "memory_mismatch": StateMismatchError,
    "memory_damaged": CorruptStateError,
    "memory_unusable": StateError,
    "model_unusable": ModelError,
}
"""Code of a server -> error of the library. Any other code is about a field of a request, which is a UsageError."""
UNDONE = frozenset(("queue_full", "rate_limited", "server_busy"))
"""Codes of requests of which nothing was done, so that each may be sent again."""
PASSING = UNDONE | {"out_of_memory", "store_unavailable", "server_stopped", "model_unusable"}
"""Codes of what may have passed a little later."""


class Failed(Exception):
    """A request that came to nothing.

    Args:
        error: what its sender is told in the end.
        is_passing: whether it may succeed a little later.
        is_undone: whether the server has certainly done nothing of it.
        pause: seconds that the server wants to be left alone.
    """

    def __init__(
        self, error: ByheartError, *, is_passing: bool, is_undone: bool = False, pause: float | None = None
    ) -> None:
        super().__init__(str(error))
        self.error, self.is_passing, self.is_undone, self.pause = error, is_passing, is_undone, pause


def refused(code: str, message: str, pause: float | None = None) -> Failed:
    """A request that the server has answered with one of its codes."""
    kind = ERRORS.get(code, UsageError)
    if code == "invalid_api_key":
        message = f"{message} Give api_key, or set $BYHEART_API_KEY."
    error = BusyError(message, pause or 1.0) if kind is BusyError else kind(message)
    return Failed(error, is_passing=code in PASSING, is_undone=code in UNDONE, pause=pause)


def told(items: Iterable[T]) -> Iterator[T]:
    """The same items; what comes to nothing on the way is told as an error of the library."""
    try:
        yield from items
    except Failed as failed:
        raise failed.error from failed.__cause__
