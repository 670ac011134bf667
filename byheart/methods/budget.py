"""How large a memory may be made within a number of bytes, so that methods can be compared at equal cost.

Counted is what is kept: the bytes of the state. What a reading takes while a question is asked is not. Nothing here
knows a method: each declares its ``Method.size``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import Any

from byheart.errors import BudgetError, UsageError, require_positive
from byheart.methods import find
from byheart.model.backbone import Backbone
from byheart.protocol.quantise import require_bits
from byheart.protocol.slot_coding import SlotCoding

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
# Specs of published results say KB; everywhere in byheart it means 1,024 bytes.
_UNITS |= {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def options_for(name: str, backbone: Backbone, budget_bytes: int, tokens: int, *, bits: int = 16) -> dict[str, Any]:
    """Options of a method whose state for one text of ``tokens`` tokens takes at most ``budget_bytes``.

    Args:
        bits: the option ``bits`` of a method that has one.

    Options that are not returned are the defaults. Raises UnknownNameError for the name, BudgetError where even the
    least state takes more, and UsageError where the method has no size to choose.
    """
    require_positive(budget_bytes=budget_bytes, tokens=tokens)
    size = find(name).size
    if size is None:
        raise UsageError(f"'{name}' has no size to choose for a budget of bytes; take another method.")

    require_bits(bits)
    saved = backbone.slot_bytes - SlotCoding(backbone, bits).slot_bytes

    def nbytes(choice: int) -> int:
        slots = size.slots(tokens, choice) if size.slots else 0
        return size.nbytes(backbone, tokens, choice) - slots * saved

    sizes = size.sizes(tokens)
    fitting = bisect_right(sizes, budget_bytes, key=nbytes)
    if fitting == 0:
        raise BudgetError(name, budget_bytes, nbytes(sizes[0]))
    return size.options(sizes[fitting - 1])


def parse_bytes(text: str) -> int:
    """Bytes from words such as ``300``, ``64KiB`` or ``1.5MiB``; ``KB`` is read as ``KiB``. Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE | re.ASCII)
    number = float(found[1]) * _UNITS.get(found[2].upper(), 0) if found else 0.0
    if number < 1:
        raise UsageError(f"'{text}' is no number of bytes; write one such as 300, 64KiB, 1.5MiB or 2GiB.")
    return int(number)
