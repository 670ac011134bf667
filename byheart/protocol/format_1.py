"""What files of byheart 0.1 call things, so that they open: states of format 1, and folders of learned parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Method -> option in 0.1 -> option now.
_OPTIONS = {
    "latent-pool": {"rows": "slots"},
    "key-norm": {"rows": "slots"},
    "attention-score": {"rows": "slots"},
    "cartridge": {"rows": "slots"},
    "compressed-kv": {"first_row": "first_slot"},
}
_FIELDS = {"mechanism": "method", "rows": "slots"}


def header(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a state's header as they are called now. Raises KeyError or AttributeError where one is absent."""
    named = {_FIELDS.get(name, name): value for name, value in fields.items()}
    return {**named, "options": _options(named["method"], named["options"])}


def card(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder of learned parts says of itself, as it is called now. Raises KeyError or AttributeError."""
    named = {_FIELDS.get(name, name): value for name, value in fields.items()}
    return {**named, "options": _options(named["method"], named["options"])}


def _options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    names = _OPTIONS.get(method, {})
    return {names.get(name, name): value for name, value in options.items()}
