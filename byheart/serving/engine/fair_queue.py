"""Jobs that wait, first come first served within a tenant, and tenants in turn.

It knows nothing of what waits. All of it may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Container, Mapping
from typing import Generic, TypeVar

from byheart.errors import BusyError

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """A bounded queue that no tenant can fill for the others.

    Args:
        most: how many items may wait, of all tenants together.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        # In the order of their turns.
        self._waiting: dict[str, deque[Item]] = {}

    def __len__(self) -> int:
        with self._lock:
            return self._count()

    def put(self, tenant: str, item: Item) -> Item | None:
        """Let an item wait; gives the one that had to leave for it, if any.

        Where the queue is full, the newest item of the tenant that has the most makes room for a tenant that would
        have fewer. Raises BusyError where that is this tenant itself.
        """
        with self._lock:
            left: Item | None = None
            if self._count() >= self.most:
                longest = max(self._waiting.values(), key=len, default=deque[Item]())
                if len(longest) <= len(self._waiting.get(tenant, ())) + 1:
                    raise BusyError(f"{self.most} jobs are waiting already; try again in a moment.")
                left = longest.pop()
            self._waiting.setdefault(tenant, deque()).append(item)
            return left

    def take(self, running: Mapping[str, int], *, full: Container[str] = ()) -> Item | None:
        """The next item: of the tenant with the fewest ``running``, and of those whose turn is the longest ago.

        Args:
            full: tenants that may have no more now.
        """
        with self._lock:
            allowed = (name for name in self._waiting if name not in full)
            tenant = min(allowed, key=lambda name: running.get(name, 0), default=None)
            if tenant is None:
                return None
            items = self._waiting.pop(tenant)
            item = items.popleft()
            if items:
                self._waiting[tenant] = items
            return item

    def remove(self, tenant: str, item: Item) -> bool:
        """Leave out an item; gives whether it was still waiting."""
        with self._lock:
            items = self._waiting.get(tenant, deque())
            if item not in items:
                return False
            items.remove(item)
            if not items:
                del self._waiting[tenant]
            return True

    def clear(self) -> list[Item]:
        """Leave out all items, which are given."""
        with self._lock:
            items = [item for each in self._waiting.values() for item in each]
            self._waiting.clear()
            return items

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))
