"""How much at once: requests of a tenant in a minute, bytes of bodies in memory, writers of one memory."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from byheart.serving.http.failures import Refusal


class RateLimit:
    """So many requests a minute of each tenant, and as many at once as come in ten seconds.

    Args:
        per_minute: 0 is no bound.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / 60
        self._most = max(1.0, per_minute / 6)
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, tenant: str) -> None:
        """Count a request. Raises Refusal where there were too many."""
        if not self._rate:
            return
        now = self._clock()
        left, then = self._left.get(tenant, (self._most, now))
        left = min(self._most, left + (now - then) * self._rate)
        if left < 1:
            raise Refusal(
                429,
                "rate_limited",
                f"More than {self._rate * 60:.0f} requests a minute; wait a little.",
                retry_after=(1 - left) / self._rate,
            )
        self._left[tenant] = left - 1, now


class Held:
    """The bytes of one request's body, as part of all that may be held.

    Whoever sets ``is_kept`` needs them after the request was answered, and is to ``release`` them.
    """

    def __init__(self, budget: Budget, tenant: str) -> None:
        self._budget, self._tenant, self.bytes = budget, tenant, 0
        self.is_kept = False

    def add(self, count: int) -> None:
        """So many bytes more. Raises Refusal where there are too many."""
        self._budget.require(self._tenant, count)
        self._budget.by_tenant[self._tenant] += count
        self.bytes += count

    def release(self) -> None:
        """Let go of all."""
        self._budget.by_tenant[self._tenant] -= self.bytes
        self._budget.by_tenant = +self._budget.by_tenant
        self.bytes = 0


class Budget:
    """The bytes of all bodies in memory, of which one request cannot know the others'.

    A tenant has at most half of what the others leave, so that there is always room for one more.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.by_tenant: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Of all tenants."""
        return self.by_tenant.total()

    def require(self, tenant: str, count: int) -> None:
        """Raise Refusal unless a tenant may hold so many bytes more."""
        own = self.by_tenant[tenant]
        if 2 * (own + count) > self.most - (self.held - own):
            raise Refusal(429, "server_busy", "Other requests fill the server; try again soon.", retry_after=1.0)

    @contextmanager
    def holding(self, tenant: str) -> Iterator[Held]:
        """Before: nothing is held. Inside: what is added is. After: it is let go of, unless it is kept."""
        held = Held(self, tenant)
        try:
            yield held
        finally:
            if not held.is_kept:
                held.release()


class WriterLocks:
    """A lock for each memory that is being written here; writers elsewhere are found when a version is committed."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, memory: str) -> asyncio.Lock:
        """The lock of a memory, by its id."""
        lock = self._locks.get(memory)
        if lock is None:
            lock = self._locks[memory] = asyncio.Lock()
        return lock
