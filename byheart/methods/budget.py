"""How large a memory may be made within a number of bytes, so that methods can be compared at equal cost.

Counted is what is kept: the bytes of the state. What a reading takes while a question is asked is not. Nothing here
knows a method: each declares its ``Method.size``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from byheart.errors import BudgetError, UsageError, require_positive
from byheart.methods import defaults, find, pretrained
from byheart.model.backbone import Backbone
from byheart.protocol.checkpoint import read_card
from byheart.protocol.quantise import require_bits

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
# Specs of published results say KB; everywhere in byheart it means 1,024 bytes.
_UNITS |= {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}

_NONE: Mapping[str, Any] = {}


def options_for(
    name: str, backbone: Backbone, budget_bytes: int, tokens: int | Sequence[int], *, given: Mapping[str, Any] = _NONE
) -> dict[str, Any]:
    """Options of a method whose state takes as many of ``budget_bytes`` as it can, and no more.

    Args:
        tokens: of the text that is written, or of each of several, without what a chat template puts around it.
        given: options of the method that are not to be chosen.

    Options that are not returned are as given, or the defaults. Raises UnknownNameError for the name, BudgetError where
    even the least state takes more, and UsageError where the method has no size to choose.
    """
    texts = (tokens,) if isinstance(tokens, int) else tuple(tokens)
    require_positive(budget_bytes=budget_bytes, tokens=min(texts, default=0))
    size = find(name).size
    if size is None:
        raise UsageError(f"'{name}' has no size to choose for a budget of bytes; take another method.")
    require_bits(given.get("bits", 16))
    known = {**_known(name, backbone, given), **given}

    def nbytes(choice: int) -> int:
        return size.nbytes(backbone, texts, {**known, **size.options(choice), **given})

    sizes = size.sizes(sum(texts))
    fitting = bisect_right(sizes, budget_bytes, key=nbytes)
    if fitting == 0:
        raise BudgetError(name, budget_bytes, nbytes(sizes[0]))
    chosen = size.options(sizes[fitting - 1])
    return {option: value for option, value in chosen.items() if option not in given}


def _known(name: str, backbone: Backbone, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method that is opened with those that are given: its defaults, or those of what it learned."""
    folder = pretrained.find(name, backbone.fingerprint, given)
    return {**defaults(find(name)), **(read_card(folder)["options"] if folder is not None else {})}


def parse_bytes(text: str) -> int:
    """Bytes from words such as ``300``, ``64KiB`` or ``1.5MiB``; ``KB`` is read as ``KiB``. Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE | re.ASCII)
    number = float(found[1]) * _UNITS.get(found[2].upper(), 0) if found else 0.0
    if number < 1:
        raise UsageError(f"'{text}' is no number of bytes; write one such as 300, 64KiB, 1.5MiB or 2GiB.")
    return int(number)
