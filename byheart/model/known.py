"""The models that this user has opened, by their fingerprints, so that a state finds its model again.

A state says which model it was made with, but a state may come from a stranger: what it names is never opened. What is
kept here are the names that the user gave.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from byheart.files import cached, keep, recall
from byheart.model.fingerprint import describe_files, without_remainder
from byheart.model.folder import name_base
from byheart.model.loading import is_alias, locate

if TYPE_CHECKING:
    from byheart.model.backbone import Backbone

_OPENED, _MOST = "models-opened", 8


def name_opened(backbone: Backbone) -> None:
    """Give a model that was just opened its fingerprints, and keep by what name the user has opened it.

    Its weights are hashed once for files that stay as they are; at once, so that no later change of the weights is
    taken for what the files hold.
    """
    names = cached(
        "fingerprints", describe_files(backbone.model), lambda: [backbone.fingerprint, backbone.sampled_fingerprint]
    )
    backbone.fingerprint, backbone.sampled_fingerprint = names
    own = locate(backbone.source)
    if not is_alias(own):
        name_base(own)
    for key in {part for name in names for part in (name, without_remainder(name))}:
        keep(_OPENED, key, [own, *(other for other in _names(key) if other != own)][:_MOST])


def find_model(fingerprint: str, name: str) -> str | None:
    """What opens the model of this fingerprint: what the user last called it, or ``name`` where that is an alias."""
    for found in (*_names(fingerprint), *_names(without_remainder(fingerprint))):
        # A folder that has come to stand where one works now is not the model of a hub that was opened by its name.
        if is_alias(found) or os.path.isabs(found) == os.path.exists(found):
            return found
    return name if is_alias(name) else None


def _names(key: str) -> list[str]:
    found = recall(_OPENED, key)
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
