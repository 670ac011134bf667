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


def remember_model(fingerprints: Iterable[str], name: str) -> None:
    """Keep ``name``, by which the user has opened the model of these fingerprints."""
    for fingerprint in fingerprints:
        for key in {fingerprint, without_remainder(fingerprint)}:
            keep("models-opened", key, locate(name))


def find_model(fingerprint: str, name: str) -> str | None:
    """What opens the model of this fingerprint: what the user called it, or ``name`` where that is an alias."""
    for key in (fingerprint, without_remainder(fingerprint)):
        found = recall("models-opened", key)
        if isinstance(found, str) and (not os.path.isabs(found) or os.path.exists(found)):
            return found
    return name if is_alias(name) else None
