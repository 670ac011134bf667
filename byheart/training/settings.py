"""Settings written once, as fields of nested dataclasses: listed, checked, built from flat names, and flattened again.

The name, the type and the default of a setting are its field's; the field's metadata holds its ``help`` and, where it
needs one, its ``metavar``. A section is a field that is itself a dataclass; its metadata holds the ``panel`` that its
settings are shown in. The names of all settings differ, whatever section they are in. What a setting means
is not known here, and no PyTorch is needed, so that the command line can list them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from byheart.errors import UnknownNameError, UsageError

Config = TypeVar("Config")
_MEANING = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list[int]: "a list of whole numbers",
    list[str]: "a list of texts",
    dict[str, Any]: "a table",
}


@dataclass(frozen=True)
class Setting:
    """One setting as a user meets it."""

    name: str
    type: Any
    default: Any
    help: str
    metavar: str | None
    panel: str | None


def list_settings(config: type, panel: str | None = None) -> dict[str, Setting]:
    """Every setting of a config and its sections, by name, in order."""
    found: dict[str, Setting] = {}
    for name, part, kind in _fields(config):
        if _is_section(kind):
            found |= list_settings(kind, part.metadata.get("panel", panel))
            continue
        default = part.default if part.default_factory is MISSING else part.default_factory()
        metadata = part.metadata
        found[name] = Setting(name, kind, default, metadata.get("help", ""), metadata.get("metavar"), panel)
    return found


def build_config(config: type[Config], values: Mapping[str, Any]) -> Config:
    """A config of flat names, or of tables that are called as its sections.

    Raises UnknownNameError for a name that is no setting, UsageError for a value of another type.
    """
    flat = _without_sections(values, _sections(config))
    known = list_settings(config)
    for name, value in flat.items():
        if name not in known:
            raise UnknownNameError("setting", name, known)
        if not _fits(value, known[name].type):
            raise UsageError(f"{name} must be {_MEANING[known[name].type]}; it is {value!r}.")
    return _build(config, flat)


def flatten(config: Any) -> dict[str, Any]:
    """Every setting's value by its name."""
    found: dict[str, Any] = {}
    for part in fields(config):
        value = getattr(config, part.name)
        found |= flatten(value) if is_dataclass(value) else {part.name: value}
    return found


def _is_section(kind: Any) -> bool:
    return is_dataclass(kind)


def _fields(config: type) -> list[tuple[str, Any, Any]]:
    """Name, field and type of each field."""
    hints = get_type_hints(config)
    return [(part.name, part, hints[part.name]) for part in fields(config)]


def _sections(config: type) -> set[str]:
    inner = {name: kind for name, _, kind in _fields(config) if _is_section(kind)}
    return inner.keys() | {name for kind in inner.values() for name in _sections(kind)}


def _without_sections(values: Mapping[str, Any], sections: set[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        is_section = name in sections and isinstance(value, dict)
        flat |= _without_sections(value, sections) if is_section else {name: value}
    return flat


def _build(config: type[Config], values: Mapping[str, Any]) -> Config:
    parts: dict[str, Any] = {}
    for name, _, kind in _fields(config):
        if _is_section(kind):
            parts[name] = _build(kind, values)
        elif name in values:
            parts[name] = values[name]
    return config(**parts)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; a whole number is a number, but true is none."""
    plain = get_origin(kind) or kind
    if plain is list:
        return type(value) is list and all(_fits(item, get_args(kind)[0]) for item in value)
    return type(value) is plain or (plain is float and type(value) is int)
