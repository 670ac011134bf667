"""Members of any kind by what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Member = TypeVar("Member")
Key = TypeVar("Key", bound=Hashable)


def group(members: Iterable[Member], key: Callable[[Member], Key]) -> dict[Key, list[Member]]:
    """Groups of one key each, in the order in which the first member of each came."""
    groups: dict[Key, list[Member]] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return groups
