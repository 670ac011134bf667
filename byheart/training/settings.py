"""Settings written once, as fields of nested dataclasses: listed, checked, built from flat names, and flattened again.

The name, the type and the default of a setting are its field's; the annotation holds its help and, where it needs one,
a placeholder for its value: ``batch: Annotated[int, "Episodes of a batch.", "N"] = 16``. A section is a field that is
itself a dataclass, annotated with the heading of its settings. The names of all settings differ, whatever their
section. What a setting means is not known here; no PyTorch is needed, so that the command line can list them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

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
    """One setting as a user meets it; or a section, whose ``help`` is its heading."""

    name: str
    type: Any
    default: Any
    help: str = ""
    metavar: str | None = None
    panel: str | None = None

    @property
    def is_section(self) -> bool:
        """Whether it holds settings of its own."""
        return is_dataclass(self.type)


def list_settings(config: type, panel: str | None = None) -> dict[str, Setting]:
    """Every setting of a config and its sections, by name, in order."""
    found: dict[str, Setting] = {}
    for part in _parts(config, panel):
        found |= list_settings(part.type, part.help or panel) if part.is_section else {part.name: part}
    return found


def build_config(config: type[Config], values: Mapping[str, Any]) -> Config:
    """A config of flat names, or of tables that are called as its sections.

    Raises UnknownNameError for a name that is no setting, UsageError for a value of another type.
    """
    # Settings are listed without what checks them, which takes a while to import.
    from byheart.protocol.schema import fits

    flat = _without_sections(values, _sections(config))
    known = list_settings(config)
    for name, value in flat.items():
        if name not in known:
            raise UnknownNameError("setting", name, known)
        if not fits(known[name].type, value):
            raise UsageError(f"{name} must be {_MEANING[known[name].type]}; it is {value!r}.")
    return _build(config, flat)


def flatten(config: Any) -> dict[str, Any]:
    """Every setting's value by its name."""
    found: dict[str, Any] = {}
    for part in fields(config):
        value = getattr(config, part.name)
        found |= flatten(value) if is_dataclass(value) else {part.name: value}
    return found


def _parts(config: type, panel: str | None = None) -> list[Setting]:
    """The settings and sections that are the fields of a config itself."""
    hints = get_type_hints(config, include_extras=True)
    parts = []
    for part in fields(config):
        hint = hints[part.name]
        kind, *texts = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        default = part.default if part.default_factory is MISSING else part.default_factory()
        help, metavar = (*texts, "", "")[:2]
        parts.append(Setting(part.name, kind, default, help, metavar or None, panel))
    return parts


def _sections(config: type) -> set[str]:
    sections = [part for part in _parts(config) if part.is_section]
    return {part.name for part in sections}.union(*(_sections(part.type) for part in sections))


def _without_sections(values: Mapping[str, Any], sections: set[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        is_section = name in sections and isinstance(value, dict)
        flat |= _without_sections(value, sections) if is_section else {name: value}
    return flat


def _build(config: type[Config], values: Mapping[str, Any]) -> Config:
    parts = [part for part in _parts(config) if part.is_section or part.name in values]
    return config(**{part.name: _build(part.type, values) if part.is_section else values[part.name] for part in parts})
