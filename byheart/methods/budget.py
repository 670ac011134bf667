"""How large a memory may be made within a number of bytes, so that memories can be compared at equal cost.

Counted is what is kept: the bytes of the state. What a reading takes while a question is asked is not.
It knows no method: each says itself what fits, by ``Method.sized``.
"""

from __future__ import annotations

import re
from typing import Any

from byheart.errors import UsageError, require_positive
from byheart.methods import find
from byheart.model.backbone import Backbone

_UNITS = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def options_for(name: str, backbone: Backbone, budget_bytes: int, tokens: int) -> dict[str, Any]:
    """Options of a memory whose state for one text of ``tokens`` tokens takes at most ``budget_bytes``.

    Options that are not given are the defaults. Raises UnknownNameError for the name, BudgetError where even the
    memory's least is more, and UsageError where a memory has no size to choose.
    """
    require_positive(budget_bytes=budget_bytes, tokens=tokens)
    return find(name).sized(backbone, budget_bytes, tokens)


def parse_bytes(text: str) -> int:
    """Bytes from words such as ``300``, ``64KB`` or ``1.5MB``; a KB is 1024 bytes. Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE | re.ASCII)
    number = float(found[1]) * _UNITS.get(found[2].upper(), 0) if found else 0.0
    if number < 1:
        raise UsageError(f"'{text}' is no number of bytes; write one such as 300, 64KB, 1.5MB or 2GB (1KB = 1024).")
    return int(number)
