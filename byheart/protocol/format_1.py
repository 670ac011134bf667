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


def rename(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A state's header, or what a folder of learned parts says of itself, as its fields are called now.

    Raises KeyError or AttributeError where one is absent.
    """
    named = {_FIELDS.get(name, name): value for name, value in fields.items()}
    options = _OPTIONS.get(named["method"], {})
    return {**named, "options": {options.get(name, name): value for name, value in named["options"].items()}}
