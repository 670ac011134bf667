"""Types that several bodies share, each with its bounds."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


def _require_printable(text: str) -> str:
    """Raise ValueError for what a database or a terminal would stumble over."""
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text):
        raise ValueError("it must have no control characters")
    return text


Line: TypeAlias = Annotated[str, AfterValidator(_require_printable)]
Name: TypeAlias = Annotated[Line, StringConstraints(min_length=1, max_length=256)]
"""Of a memory; what names are is for the store to say."""
Metadata: TypeAlias = Annotated[
    dict[
        Annotated[Line, StringConstraints(min_length=1, max_length=64)],
        Annotated[Line, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]
Subject: TypeAlias = Annotated[Line, StringConstraints(max_length=256)]
Source: TypeAlias = Annotated[Line, StringConstraints(min_length=1, max_length=1024)]
VersionNumber: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 53)]


class Closed(BaseModel):
    """A body of byheart's own: a field that it does not know is an error, as is a value of another type."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Open(BaseModel):
    """A body of OpenAI's: what it does not know is left alone, but see ``unsupported``."""

    model_config = ConfigDict(strict=True, extra="ignore")


class MemoryChoice(Closed):
    """Which memory is read, and whether the turn is written into it afterwards.

    Args:
        version: an earlier one; the newest without it.
    """

    id: Name
    version: Annotated[int, Field(ge=1, lt=1 << 53)] | None = None
    write: bool = False
