"""Which other item's texts stand in for an item's own, where a method is asked after another text was written.

It knows items and batches; it does not know methods.
"""

from __future__ import annotations

from collections.abc import Sequence

from byheart.errors import InputError
from byheart.evaluation.task import Item, Task


def batch_with_others(task: Task, items: Sequence[Item], size: int) -> tuple[list[list[int]], dict[int, int]]:
    """The batches of all items, by number, and for each item the one of its batch whose texts stand in for its own.

    Both are the same however much of a run is there already. Texts that are the same are no control: the next item of
    the batch that has others is taken. Raises InputError where there is none.
    """
    batches = task.batches(dict(enumerate(items)), max(size, 2))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches, {n: _other(items, batch, place) for batch in batches for place, n in enumerate(batch)}


def _other(items: Sequence[Item], batch: Sequence[int], place: int) -> int:
    own = items[batch[place]].texts
    for n in (*batch[place + 1 :], *batch[:place]):
        if items[n].texts not in (own, ()):
            return n
    raise InputError(
        f"Item {batch[place] + 1} cannot be asked after another text: its batch of {len(batch)} has no other one. "
        "Give more items or a larger batch, or leave out control=other."
    )
