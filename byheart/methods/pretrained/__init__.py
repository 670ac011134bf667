"""Pretrained parts of methods that come with byheart, found by the model that they were trained for.

    byheart/methods/pretrained/NAME/
        method.safetensors, method.json     as ``save_pretrained`` writes them, in bfloat16
        recipe.json                         all that decided the training
        README.md                           the card: data and licences, command, time, numbers

`scripts/ship.py` puts them there. Nothing here knows a method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from byheart.model.fingerprint import without_remainder

# A package that is installed is a folder: the weights are read in place.
FOLDER = Path(__file__).parent
# Options that do not bear on what is learned.
_FREE = {"bits", "slots", "compressed_slots"}


def find(method: str, backbone: str, options: Mapping[str, Any]) -> Path | None:
    """The folder of this method's pretrained parts for the model of fingerprint ``backbone`` that has these options.

    They serve the model in any precision, and slots in any ``bits``, with text that streams through them or without.
    Options that are not given may have any value; of several folders, the first by name. None where there is none.
    """
    wanted = json.loads(json.dumps({name: value for name, value in options.items() if name not in _FREE}))
    for file in sorted(FOLDER.glob("*/method.json")):
        card = json.loads(file.read_text(encoding="utf-8"))
        same = (card["method"], without_remainder(card["backbone"])) == (method, without_remainder(backbone))
        if same and all(card["options"].get(name) == value for name, value in wanted.items()):
            return file.parent
    return None
