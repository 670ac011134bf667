"""A few threads that read files, for tenants in turn: one with many slow files does not keep the others waiting."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from byheart.serving.engine.fair_queue import FairQueue

Made = TypeVar("Made")
# What waits here is bounded by the jobs that an engine takes in.
_ANY_NUMBER = 1 << 30


class FairThreads:
    """Threads that take their next work from the tenant that has the fewest of them at work.

    Args:
        threads: how many there are.
        name: what theirs begin with.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._waiting: FairQueue[tuple[str, Future[Any], Callable[[], Any]]] = FairQueue(_ANY_NUMBER)
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()

    def submit(self, tenant: str, work: Callable[[], Made]) -> Future[Made]:
        """What ``work`` gives or raises, once it was this tenant's turn; it may be cancelled until then."""
        future: Future[Made] = Future()
        self._waiting.put(tenant, (tenant, future, work))
        # Whichever work's turn it is when a thread is free, and not always this one.
        self._threads.submit(self._next)
        return future

    def shutdown(self) -> None:
        """Wait for all that was submitted."""
        self._threads.shutdown()

    def _next(self) -> None:
        with self._lock:
            item = self._waiting.take(self._running)
            if item is None:
                return
            tenant, future, work = item
            self._running[tenant] += 1
        try:
            if future.set_running_or_notify_cancel():
                _fulfil(future, work)
        finally:
            with self._lock:
                self._running -= Counter([tenant])


def _fulfil(future: Future[Made], work: Callable[[], Made]) -> None:
    try:
        made = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(made)
