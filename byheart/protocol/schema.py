"""Values of somebody else's, checked against a type before they are used."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError


def validate(kind: Any, value: object, *, strict: bool = False) -> Any:
    """``value`` as a ``kind``. Raises ValueError in one line, with the first field that does not fit.

    Args:
        strict: turn nothing into what it is not, ``"1"`` or true into 1.
    """
    try:
        return _adapter(kind).validate_python(value, strict=strict or None)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # The names in it may be of somebody else too.
        field = repr(".".join(map(str, first["loc"]))[:100])
        raise ValueError(f"{field}: {first['msg'][:200]}") from error


def fits(kind: Any, value: object) -> bool:
    """Whether ``value`` is a ``kind`` as it stands; a whole number is a number, but true is none."""
    try:
        validate(kind, value, strict=True)
    except ValueError:
        return False
    return True


@cache
def _adapter(kind: Any) -> Any:
    return TypeAdapter(kind)
