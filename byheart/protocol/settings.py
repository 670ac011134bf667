"""Settings in JSON that somebody else may have written, held to a schema before anything is made of them.

A schema is a subclass of ``Settings``: a value of another type is refused, not converted, and so is a number that is
infinite or no number. Keys that a schema does not name are passed over.
"""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as shorten
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from byheart.errors import CheckpointError
from byheart.files import read_json


class Settings(BaseModel):
    """Named values of a file; a subclass says which, of which types and within which bounds."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def read_settings(path: Path, schema: type[S], *, inside: Path | None = None) -> S:
    """What a JSON file says, by its schema. Raises CheckpointError naming the file and the setting.

    Args:
        inside: the folder in which the file must lie after links are followed.
    """
    try:
        found = read_json(path, inside=inside)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}. Give the folder as it was released.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"'{path}' holds no JSON object. Give the folder as it was released.")
    try:
        return schema.model_validate(found)
    except ValidationError as error:
        raise CheckpointError(f"'{path}' {_problem(error)}. Give the folder as it was released.") from error


def _problem(error: ValidationError) -> str:
    """The settings that are absent, else the first that is wrong."""
    found = error.errors(include_url=False)
    absent = [".".join(map(str, one["loc"])) for one in found if one["type"] == "missing"]
    if absent:
        return f"lacks {', '.join(absent)}: it is not of this format"
    place = "".join(f"{shorten(part).strip(chr(39))}: " for part in found[0]["loc"])
    return f"cannot be used: {place}{found[0]['msg']}; it is {shorten(found[0]['input'])}"
