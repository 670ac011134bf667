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
from byheart.files import read_json, root


class Settings(BaseModel):
    """Named values of a file; a subclass says which, of which types and within which bounds."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def read_settings(path: Path, schema: type[S]) -> S:
    """What a JSON file beside a checkpoint says, by its schema. Raises CheckpointError naming file and setting."""
    try:
        return parse(schema, read_json(path, inside=root(path.parent)))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}. Give the folder as it was released.") from error


def parse(schema: type[S], found: object) -> S:
    """What JSON says, by its schema. Raises ValueError naming the setting, in one line."""
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    try:
        return schema.model_validate(found)
    except ValidationError as error:
        raise ValueError(_problem(error)) from error


def _problem(error: ValidationError) -> str:
    """The settings that are absent, else the first that is wrong."""
    found = error.errors(include_url=False)
    absent = [".".join(map(str, one["loc"])) for one in found if one["type"] == "missing"]
    if absent:
        return f"it lacks {', '.join(absent)}"
    place = "".join(f"{shorten(part)[1:-1] if isinstance(part, str) else part}: " for part in found[0]["loc"])
    return f"{place}{found[0]['msg']}; it is {shorten(found[0]['input'])}"
