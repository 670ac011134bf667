"""What a client is told when something fails."""

from __future__ import annotations

import errno

import pytest

from byheart.errors import StateError
from byheart.serving.http.failures import explain


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, (507, "storage_full")),
        (errno.EACCES, (503, "store_unavailable")),
        (None, (422, "memory_unusable")),
    ],
)
def test_a_state_that_the_disk_does_not_take_is_no_mistake_of_the_client(
    number: int | None, expected: tuple[int, str]
) -> None:
    error = StateError("The file could not be written.")
    error.__cause__ = None if number is None else OSError(number, "no")
    failure = explain(error, "req_1")
    assert (failure.status, failure.code) == expected
