"""Values of somebody else's fit a type, or the first field that does not is named in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from byheart.protocol.schema import validate


@dataclass(frozen=True)
class Part:
    name: str
    sizes: list[int]


def test_what_fits_is_made() -> None:
    assert validate(Part, {"name": "a", "sizes": [1]}) == Part("a", [1])
    assert validate(Sequence[int], [1, 2], strict=True) == [1, 2]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Part, {"name": "a", "sizes": [1, "x"]}, r"^'sizes\.1': Input should be a valid integer[^\n]*$"),
        (Part, {"name": 3, "sizes": []}, r"^'name': Input should be a valid string$"),
        (dict[str, Part], {"\x1b[2J\n": 3}, r"^'\\x1b\[2J\\n': Input should be"),
        (int, "x" * 9999, r"^.{1,300}$"),
    ],
)
def test_the_first_field_that_does_not_fit_is_named(kind: Any, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(kind, value)


def test_strictly_nothing_becomes_what_it_is_not() -> None:
    assert validate(int, "1") == 1
    with pytest.raises(ValueError, match="valid integer"):
        validate(int, "1", strict=True)
