"""Folders for files on their way into a store, one a process; who dies leaves one that the next sweep removes."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = "lock"


class Scratch:
    """A folder of this process below ``root``, made when first asked for; nobody removes it while it is locked."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock: FileLock | None = None
        self._guard = threading.Lock()

    @property
    def folder(self) -> Path:
        """This process's folder. Raises OSError."""
        with self._guard:
            while self._lock is None or not Path(self._lock.lock_file).exists():
                self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
                lock = FileLock(Path(tempfile.mkdtemp(dir=self._root)) / _LOCK, thread_local=False)
                # A sweep may have taken the new folder for a dead one's.
                with suppress(Timeout, FileNotFoundError):
                    lock.acquire(timeout=0)
                    self._lock = lock
                    self._end = weakref.finalize(self, _remove, lock, os.getpid())
            return Path(self._lock.lock_file).parent

    def sweep(self) -> int:
        """Remove the folders of processes that are gone; gives how many files there were."""
        found = 0
        for folder in self._root.iterdir() if self._root.is_dir() else ():
            lock = FileLock(folder / _LOCK, thread_local=False)
            with suppress(Timeout, OSError):
                lock.acquire(timeout=0)
                files = sum(file.is_file() for file in folder.iterdir()) - 1
                shutil.rmtree(folder)
                lock.release()
                found += files
        return found

    def close(self) -> None:
        """Remove this process's folder, as its end does."""
        with self._guard:
            if self._lock is not None:
                self._end()
                self._lock = None


def _remove(lock: FileLock, process: int) -> None:
    # A forked process has the folder of the one before it.
    if os.getpid() == process:
        shutil.rmtree(Path(lock.lock_file).parent, ignore_errors=True)
        lock.release()
