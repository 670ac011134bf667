"""The twin of ``byheart.methods.key_norm``: one slot at a time."""

from __future__ import annotations

from torch import Tensor


def kept(keys: Tensor, slots: int, *, sinks: int, recent: int) -> list[int]:
    """Which slots of one head's keys (M, W) are kept."""
    length = len(keys)
    places = set(range(min(sinks, length))) | set(range(max(0, length - recent), length))
    for place in sorted(range(length), key=lambda place: float(sum(x * x for x in keys[place].tolist()))):
        if len(places) < min(slots, length):
            places.add(place)
    return sorted(places)
