"""A few threads that read files, for tenants in turn: one with many slow files leaves a thread to the others."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from byheart.serving.engine.fair_queue import FairQueue

Made = TypeVar("Made")
# What waits is bounded by the jobs that an engine takes in, and what was cancelled leaves as soon as a thread is free.
_ANY_NUMBER = 1 << 30


class FairThreads:
    """Threads that take their next work from the tenant that has the fewest of them at work.

    Args:
        threads: how many there are; one tenant has at most all but one.
        name: what theirs begin with.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._waiting: FairQueue[tuple[str, Future[Any], Callable[[], Any]]] = FairQueue(_ANY_NUMBER)
        self._running: Counter[str] = Counter()
        self._most = max(1, threads - 1)
        self._lock = threading.Lock()

    def submit(self, tenant: str, work: Callable[[], Made]) -> Future[Made]:
        """What ``work`` gives or raises, once it was this tenant's turn; it may be cancelled until then."""
        future: Future[Made] = Future()
        self._waiting.put(tenant, (tenant, future, work))
        self._threads.submit(self._work)
        return future

    def shutdown(self) -> None:
        """Wait for all that was submitted."""
        self._threads.shutdown()

    def _work(self) -> None:
        """Whichever work's turn it is, and then what had to wait for it."""
        while (item := self._take()) is not None:
            tenant, future, work = item
            try:
                if future.set_running_or_notify_cancel():
                    _fulfil(future, work)
            finally:
                with self._lock:
                    self._running -= Counter([tenant])

    def _take(self) -> tuple[str, Future[Any], Callable[[], Any]] | None:
        with self._lock:
            full = {tenant for tenant, count in self._running.items() if count >= self._most}
            item = self._waiting.take(self._running, full=full)
            if item is not None:
                self._running[item[0]] += 1
            return item


def _fulfil(future: Future[Made], work: Callable[[], Made]) -> None:
    try:
        made = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(made)
