"""A method's learned parts on disk.

    FOLDER/method.json           the method's name, its options, and the fingerprint of its backbone
    FOLDER/method.safetensors    its parameters and buffers

byheart 0.1 called the two `memory.json` and `memory.safetensors`; such folders open too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from byheart.errors import CheckpointError, StateMismatchError
from byheart.protocol import format_1
from byheart.protocol.method import Method

CARD, WEIGHTS = "method.json", "method.safetensors"
_OLD_CARD, _OLD_WEIGHTS = "memory.json", "memory.safetensors"


def is_learned(name: str) -> bool:
    """Whether ``name`` is a folder that ``save_pretrained`` wrote, or is written as a path."""
    return os.sep in name or any((Path(name) / card).is_file() for card in (CARD, _OLD_CARD))


def read_card(folder: str | Path) -> dict[str, Any]:
    """The method, options and backbone of a folder that ``save_pretrained`` wrote. Raises CheckpointError."""
    is_old = _is_old(Path(folder))
    try:
        stored = json.loads((Path(folder) / (_OLD_CARD if is_old else CARD)).read_text(encoding="utf-8"))
        card = format_1.card(stored) if is_old else stored
        return {key: card[key] for key in ("method", "options", "backbone")}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"'{folder}' holds no trained method: {CARD} cannot be read ({error}).") from error


def _is_old(folder: Path) -> bool:
    """Whether byheart 0.1 wrote this folder, and no later version has."""
    return not (folder / CARD).exists() and (folder / _OLD_CARD).exists()


def save_pretrained(method: Method, folder: str | Path) -> None:
    """Write the learned parts of ``method``, and its options, into ``folder``."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    card = {"method": method.name, "options": method.options(), "backbone": method.backbone.fingerprint}
    save_file({k: v.detach().cpu().contiguous() for k, v in method.state_dict().items()}, path / WEIGHTS)
    (path / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load_pretrained(method: Method, folder: str | Path) -> None:
    """Read into ``method`` what ``save_pretrained`` wrote. Raises StateMismatchError or CheckpointError."""
    card = read_card(folder)
    if card["method"] != method.name or not method.backbone.is_called(card["backbone"]):
        raise StateMismatchError(
            f"'{folder}' holds learned parts of {card['method']} for backbone {card['backbone']}; "
            f"this is {method.name} on backbone {method.backbone.fingerprint}."
        )
    weights = _OLD_WEIGHTS if _is_old(Path(folder)) else WEIGHTS
    try:
        stored = load_file(Path(folder) / weights, device=str(method.backbone.device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{folder}': {weights} cannot be read ({error}).") from error
    # A buffer that is None is a learned part that only some have.
    optional = {name for name, buffer in method._buffers.items() if buffer is None and name in stored}
    expected = method.state_dict()
    missing, unexpected = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys() - optional)
    misshapen = [name for name in sorted(expected.keys() & stored.keys()) if expected[name].shape != stored[name].shape]
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"'{folder}' does not fit: missing {missing}, unexpected {unexpected}, of another shape {misshapen}."
        )
    for name in optional:
        setattr(method, name, stored[name])
    method.load_state_dict(stored)
