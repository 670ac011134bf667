"""From the columns of somebody's records to the fields of byheart's, by a declaration instead of code.

A declaration gives each field one of these:

    "a.b.0"                         the value there; a number counts in a list, from its end where it is negative,
                                    and ``*`` is every item
    "a.b?"                          the same; where it is missing, the field is left out
    "{a}, by {b}"                   text with values in it; ``{#}`` is the number of the record, from 0 on
    ["a", "*b"]                     a list of values; ``*`` before a name takes all items of the list there
    {column = "a", KEY = ...}       the value, changed by each KEY of ``CHANGES`` in the order given

A field that is called ``meta.turns`` is one inside another. Where a record has ``choices`` and a ``label`` among them,
and no ``answers``, that choice is its answer. Nothing here knows a data set.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from byheart.errors import InputError

Fields: TypeAlias = Mapping[str, Any]
Columns: TypeAlias = Mapping[str, Any]
"""Field -> where it comes from."""
_MISSING = object()


class _NoColumnError(Exception):
    """A column that a record lacks."""


def map_columns(
    row: Fields, columns: Columns, *, number: int, source: str, fixed: Fields | None = None
) -> dict[str, Any]:
    """The fields that a declaration makes of a record.

    Args:
        number: of the record, from 0 on; errors count from 1.
        fixed: columns that every record has, in place of its own.

    Raises InputError that names the record, the field and the columns, where one is missing or of another kind.
    """
    found: dict[str, Any] = {}
    whole = {**row, **(fixed or {})}
    for field, spec in columns.items():
        try:
            value = _value(whole, spec, number)
        except _NoColumnError as error:
            there = ", ".join(sorted(map(str, row))) or "none"
            raise InputError(
                f"{source}, record {number + 1}: '{field}' should come from column '{error}', which is not there; "
                f"its columns are {there}."
            ) from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise InputError(
                f"{source}, record {number + 1}: '{field}' cannot be made of {spec!r}: {error}."
            ) from error
        if value is not _MISSING:
            _put(found, field, value)
    choices, label = found.get("choices"), found.get("label")
    if "answers" not in found and isinstance(choices, list) and isinstance(label, int) and 0 <= label < len(choices):
        found["answers"] = [choices[label]]
    return found


def pick(row: Any, path: str) -> Any:
    """The value at a path. Raises LookupError."""
    try:
        return _at(row, path, path.split("."))
    except _NoColumnError as error:
        raise LookupError(f"there is no '{error}'") from error


def _value(row: Fields, spec: Any, number: int) -> Any:
    if isinstance(spec, list):
        return [item for part in spec for item in _items(row, str(part))]
    if isinstance(spec, Mapping):
        changes = dict(spec)
        value = _value(row, changes.pop("column"), number)
        for name, argument in changes.items():
            value = CHANGES[name](value, argument, row)
        return value
    if "{" in spec:
        return re.sub(r"\{([^{}]+)\}", lambda at: str(number if at[1] == "#" else _path(row, at[1])), spec)
    if spec.endswith("?"):
        try:
            return _path(row, spec[:-1])
        except _NoColumnError:
            return _MISSING
    return _path(row, spec)


def _items(row: Fields, part: str) -> list[Any]:
    return list(_path(row, part[1:])) if part.startswith("*") else [_path(row, part)]


def _path(row: Any, path: str) -> Any:
    # A column may have a dot in its name.
    return row[path] if path in row else _at(row, path, path.split("."))


def _at(value: Any, path: str, steps: Sequence[str]) -> Any:
    for place, step in enumerate(steps):
        if step == "*" and isinstance(value, list):
            return [_at(item, path, steps[place + 1 :]) for item in value]
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and re.fullmatch(r"-?\d+", step) and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            raise _NoColumnError(path)
    return value


def _put(record: dict[str, Any], field: str, value: Any) -> None:
    *outer, name = field.split(".")
    for part in outer:
        record = record.setdefault(part, {})
    record[name] = value


# ---- changes ----


def _among(value: Any, names: Any, row: Fields) -> int:
    """The place of a value in a list, or in the list of another column."""
    known = _path(row, names) if isinstance(names, str) else names
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(map(str, known))}")
    return list(known).index(value)


def _parsed(text: Any, kind: str, row: Fields) -> Any:
    """What text says in a notation, or a list of pairs as the text of a JSON object."""
    if kind == "python":
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"{str(text)[:40]!r} is no value that Python writes so") from error
    return json.loads(text) if kind == "json" else json.dumps(dict(text))


def _stripped(value: Any, ends: Any, row: Fields) -> Any:
    """Text without whitespace around it; of a list, each item."""
    return [item.strip() for item in value] if isinstance(value, list) else value.strip()


def _middle(text: str, lengths: Sequence[int], row: Fields) -> str:
    """So many characters from where a window of another length begins that stands in the middle."""
    start = _middle_start(text, lengths, row)
    return text[start : start + lengths[1]]


def _middle_start(text: str, lengths: Sequence[int], row: Fields) -> int:
    return max(0, (len(text) - lengths[0]) // 2)


def _joined(parts: Any, breaks: str | Sequence[str], row: Fields) -> str:
    """A list as one text; several breaks are for lists within lists, the outermost first."""
    if isinstance(breaks, str):
        return breaks.join(map(str, parts))
    return breaks[0].join(part if isinstance(part, str) else _joined(part, breaks[1:], row) for part in parts)


CHANGES: Mapping[str, Callable[[Any, Any, Fields], Any]] = {
    "among": _among,
    "as": _parsed,
    "strip": _stripped,
    "without": lambda text, start, row: text.removeprefix(start),
    "after": lambda text, mark, row: text.partition(mark)[2],
    "before": lambda text, mark, row: text.partition(mark)[0],
    "fill": lambda text, path, row: text.replace("{}", str(_path(row, path))),
    "join": _joined,
    "list": lambda value, _, row: [value],
    "length": lambda text, _, row: len(text),
    "middle": _middle,
    "middle_start": _middle_start,
    "text": lambda value, _, row: str(value),
}
"""What a declaration can do to a value, by its key; each takes the value, the key's argument and the record."""


def content_key(record: Fields) -> str:
    """Eight digits that name a record by its text, its question and its first answer, whatever their whitespace."""
    parts = [record.get("context", ""), record.get("question", ""), *list(record.get("answers") or ())[:1]]
    text = "\n".join(" ".join(str(part).split()) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
