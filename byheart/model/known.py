"""The models that this user has opened, by their fingerprints, so that a state finds its model again.

A state says which model it was made with, but a state may come from a stranger: what it names is never opened. What is
kept here are the names that the user gave.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from byheart.cache import keep, recall
from byheart.model.fingerprint import without_remainder
from byheart.model.loading import is_alias, locate

_OPENED, _MOST = "models-opened", 8


def remember_model(fingerprints: Iterable[str], name: str) -> None:
    """Keep ``name``, by which the user has opened the model of these fingerprints."""
    own = locate(name)
    for key in {part for whole in fingerprints for part in (whole, without_remainder(whole))}:
        keep(_OPENED, key, [own, *(other for other in _names(key) if other != own)][:_MOST])


def find_model(fingerprint: str, name: str) -> str | None:
    """What opens the model of this fingerprint: what the user last called it, or ``name`` where that is an alias."""
    for found in (*_names(fingerprint), *_names(without_remainder(fingerprint))):
        if not os.path.isabs(found) or os.path.exists(found):
            return found
    return name if is_alias(name) else None


def _names(key: str) -> list[str]:
    found = recall(_OPENED, key)
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
