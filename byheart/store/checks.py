"""What may be said of a memory: names in every script, and bounded texts that any database can hold."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from byheart.errors import StoreError
from byheart.store.values import Expiry

_ID = re.compile(r"mem_[A-Za-z0-9_-]{24}")
_LONGEST_NAME, _LONGEST_TEXT = 100, 255
_PAIRS, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512
_LONGEST_OPTIONS = 64 << 10
_LONGEST_EXPIRY = 100 * 366 * 24 * 3600


def is_id(name_or_id: str) -> bool:
    """Whether this is an id, which no name can be."""
    return _ID.fullmatch(name_or_id) is not None


def require_name(name: str) -> str:
    """The name in its composed form (NFC), in which alone names are compared. Raises StoreError."""
    composed = unicodedata.normalize("NFC", name)
    kinds = [unicodedata.category(character)[0] for character in composed]
    fits = all(kind in "LMN" or character in "._-" for kind, character in zip(kinds, composed, strict=True))
    fits = fits and 0 < len(composed) <= _LONGEST_NAME and (kinds[0] in "LN" or composed[0] == "_")
    if not fits or is_id(composed):
        raise StoreError(
            f"{name[:_LONGEST_NAME]!a} cannot name a memory; a name is up to {_LONGEST_NAME} letters and digits "
            "of any script, '.', '_' and '-', begins with a letter, a digit or '_', and is no id (mem_...)."
        )
    return composed


def require_text(what: str, text: str, *, longest: int = _LONGEST_TEXT) -> str:
    """The same text. Raises StoreError where a database could not hold it."""
    if len(text) > longest:
        raise StoreError(f"{what} may have {longest} characters; it has {len(text)}.")
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise StoreError(f"{what} holds a character that is no text (NUL, or half a character).")
    return text


def require_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The same pairs. Raises StoreError."""
    if len(metadata) > _PAIRS:
        raise StoreError(f"metadata may have {_PAIRS} pairs; it has {len(metadata)}.")
    for key, value in metadata.items():
        require_text("A key of metadata", key, longest=_LONGEST_KEY)
        if not key.isprintable() or not key or set('"\\') & set(key):
            raise StoreError(f'{key!a} cannot be a key of metadata: it is empty, or holds \\, " or a control.')
        if not isinstance(value, str):
            raise StoreError(f"metadata '{key}' must be a text; it is of type {type(value).__name__}.")
        require_text(f"metadata '{key}'", value, longest=_LONGEST_VALUE)
    return dict(metadata)


def require_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same options. Raises StoreError for what JSON cannot hold."""
    try:
        size = len(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"The method's options cannot be kept: {error}.") from error
    if size > _LONGEST_OPTIONS:
        raise StoreError(f"The method's options take {size} bytes as JSON; they may take {_LONGEST_OPTIONS}.")
    return dict(options)


def require_expiry(expiry: Expiry | None) -> Expiry | None:
    """The same expiry. Raises StoreError."""
    if expiry is not None:
        if expiry.anchor not in ("last_active_at", "created_at"):
            raise StoreError(f"expires_after: anchor is last_active_at or created_at; it is {expiry.anchor!a}.")
        if not 0 < expiry.seconds <= _LONGEST_EXPIRY:
            raise StoreError(f"expires_after: seconds are 1 to {_LONGEST_EXPIRY}; they are {expiry.seconds}.")
    return expiry


def require_limit(limit: int) -> int:
    """The same limit. Raises StoreError."""
    if not 1 <= limit <= 100:
        raise StoreError(f"limit is 1 to 100; it is {limit}.")
    return limit
