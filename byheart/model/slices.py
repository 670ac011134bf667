"""Work on a model that is cut into slices: a generator that pauses after each, and returns what it made.

It yields how many tokens of a new text were read since the pause before, 0 where the model did something else, and None
where it waits for something else than the model.

Dimensions: B batch, t tokens of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias, TypeVar

from jaxtyping import Int
from torch import Tensor

from byheart.model.backbone import Backbone
from byheart.model.reading import KV, Reading

Made = TypeVar("Made")
Slices: TypeAlias = Generator[int | None, None, Made]


def run_through(slices: Slices[Made]) -> Made:
    """What work in slices makes, done without a pause."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            made: Made = end.value
            return made


def run_aside(work: Callable[[], Made], *, look_every: float = 0.002) -> Slices[Made]:
    """What ``work`` makes without the model, in a thread that ends, and PyTorch's threads of it. Raises what it raises.

    Args:
        look_every: seconds that a look at whether it is done may take; 0 where who runs the slices waits by itself.
    """
    aside = ThreadPoolExecutor(1, thread_name_prefix="byheart-aside")
    doing = aside.submit(work)
    aside.shutdown(wait=False)
    try:
        while wait([doing], look_every).not_done:
            yield None
        return doing.result()
    finally:
        doing.cancel()


def prefill_in_slices(
    backbone: Backbone,
    slices: Sequence[Int[Tensor, "B _"]],
    prefix: KV | None = None,
    *,
    inside: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Slices[KV]:
    """As ``Backbone.prefill``, of tokens in slices, with a pause after each in which the model may do something else.

    Args:
        inside: entered while a slice is read, and left in the pauses.
    """
    held, total = prefix.slots if prefix else 0, sum(part.shape[1] for part in slices)
    with backbone.reading([Reading(prefix, batch=len(slices[0]))], room=total) as cache:
        pass
    for part in slices:
        with inside():
            backbone.hidden(part, cache=cache)
        yield part.shape[1]
    return cache.rows_from(held)
