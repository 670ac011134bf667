"""A job between two threads: the event loop, where somebody waits for it, and the engine's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from byheart.model.slices import Slices

Work: TypeAlias = Slices[Any]
"""What is to be done for a job before it decodes anything, in slices; see ``model.slices``."""


class Ticket:
    """A job that was accepted. What is made for it comes out of ``items``; an exception there is its end.

    Args:
        start: gives the job's work, once it is its turn.
        discard: is given what was made for it after nobody waits any more.
    """

    def __init__(
        self, tenant: str, start: Callable[[Ticket], Work], discard: Callable[[Any], None] = lambda item: None
    ) -> None:
        self.tenant, self.start, self.discard = tenant, start, discard
        self.loop = asyncio.get_running_loop()
        self.items: asyncio.Queue[Any] = asyncio.Queue()
        self.is_cancelled = False
        self.uses: list[str] = []
        """Keys of the resident memories that it reads."""
        self.is_opening = False
        """Whether it waits for a memory that is not resident yet."""


class Outbox:
    """What was made for tickets since it was sent last; one call of each event loop delivers all of it."""

    def __init__(self) -> None:
        self._items: list[tuple[Ticket, Any]] = []

    def put(self, ticket: Ticket, item: Any) -> None:
        """Send this item of the ticket next time."""
        self._items.append((ticket, item))

    def send(self) -> None:
        """Hand everything to the event loops."""
        items, self._items = self._items, []
        for loop in {ticket.loop for ticket, _ in items}:
            own = [(ticket, item) for ticket, item in items if ticket.loop is loop]
            # A loop that was closed has nobody waiting.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_deliver, own)


def _deliver(items: Sequence[tuple[Ticket, Any]]) -> None:
    for ticket, item in items:
        if ticket.is_cancelled:
            ticket.discard(item)
        else:
            ticket.items.put_nowait(item)
