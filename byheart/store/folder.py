"""Memories by name: one state file each in one folder, safe for several writers at once.

A name is taken by the first save. Writers of one memory wait for one another; readers need not, because a file is
replaced as a whole. What killed writers left is removed by the next one, and when memories are listed or forgotten.
What a file holds is not known here beyond its header.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import BaseFileLock, FileLock, Timeout

from byheart.errors import StateError, StoreError
from byheart.files import sweep
from byheart.protocol import header_file
from byheart.protocol.state import Header
from byheart.store.sessions import SessionStore, catch_up

if TYPE_CHECKING:
    from byheart.session.session import Session

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SUFFIX = ".safetensors"
_LEFT = re.compile(r"\.(.+?)(?:[.-][a-z0-9_]{8}\.tmp|\.lock)")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One memory of a store. A damaged one has no header but a ``problem``."""

    name: str
    path: Path
    bytes: int
    header: Header | None
    problem: str = ""

    @property
    def tokens(self) -> int:
        """Tokens of text written so far; 0 of a damaged one."""
        return self.header.tokens if self.header else 0

    @property
    def slots(self) -> int:
        """Slots that the model reads; 0 of a damaged one."""
        return self.header.slots if self.header else 0

    def summary(self) -> dict[str, Any]:
        """What a memory is and holds, as JSON has it; of a damaged one, its problem."""
        file = {"name": self.name, "path": str(self.path), "bytes": self.bytes}
        header = self.header
        if header is None:
            return {**file, "problem": self.problem}
        counts = {"texts": len(header.written), "tokens": header.tokens, "characters": header.characters}
        last_written = header.written[-1].at if header.written else None
        return {**file, "method": header.method, "model": header.model, **counts, "last_written": last_written}


class Store(SessionStore):
    """Named memories in ``home``; without it, in $BYHEART_HOME or the user's data folder."""

    def __init__(self, home: str | Path | None = None) -> None:
        folder = home or os.environ.get("BYHEART_HOME") or platformdirs.user_data_path("byheart")
        self.home = Path(os.path.expanduser(folder))

    # ---- names ----

    def path(self, name: str) -> Path:
        """Where a memory is or would be. Raises StoreError for what cannot be a name."""
        if not _NAME.fullmatch(name):
            raise StoreError(
                f"'{name}' cannot name a memory; a name is up to 100 letters, digits, '.', '_' and '-', "
                "and begins with a letter, a digit or '_'."
            )
        return self.home / f"{name}{_SUFFIX}"

    def exists(self, name: str) -> bool:
        """Whether a memory has been saved under ``name``. Raises StoreError for what cannot be a name."""
        return self.path(name).is_file()

    def names(self) -> list[str]:
        """All names, sorted. Raises StoreError where the folder cannot be read."""
        found = (file.removesuffix(_SUFFIX) for file in self._files() if file.endswith(_SUFFIX))
        return sorted(name for name in found if _NAME.fullmatch(name))

    def _files(self) -> list[str]:
        try:
            return os.listdir(self.home)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"Memories in '{self.home}' cannot be listed: {error.strerror}.") from error

    def entry(self, name: str) -> Entry:
        """A memory's header and bytes. Raises StoreError where there is none, StateError where it is damaged."""
        path = self.existing(name)
        return Entry(name, path, path.stat().st_size, header_file.load_header(path))

    def entries(self) -> list[Entry]:
        """All memories; a damaged one says so and hides no other. Raises StoreError where the folder cannot be read."""
        names = self.names()
        self._sweep(names)
        return [entry for entry in map(self._examine, names) if entry is not None]

    def _examine(self, name: str) -> Entry | None:
        """A memory, whole or damaged; None where it was forgotten meanwhile."""
        path = self.path(name)
        while (found := _identify(path)) is not None:
            try:
                return self.entry(name)
            except (StateError, StoreError, OSError) as error:
                if found == _identify(path):
                    return Entry(name, path, found[0], None, str(error))
        return None

    def require(self, name: str) -> None:
        """Raise StoreError where there is no memory, with the nearest name."""
        self.existing(name)

    def existing(self, name: str) -> Path:
        """Where a memory is. Raises StoreError where there is none, with the nearest name."""
        path = self.path(name)
        if not path.is_file():
            if os.path.lexists(path):
                raise StoreError(f"Memory '{name}' is no file that can be read; see what '{path}' is, and remove it.")
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise StoreError(f"There is no memory '{name}'. {hint}`byheart list` shows all.")
        return path

    # ---- sessions ----

    @contextmanager
    def updating(self, name: str, session: Session) -> Iterator[None]:
        """Change a memory so that no other writer's text is lost.

        Before: other writers are waited for. Inside: ``session`` has all that was saved. After: it is saved; on an
        error it is not, and the file and the session are as they were. Raises StoreError, StateError.
        """
        with self._locked(name):
            catch_up(name, self.existing(name) if os.path.lexists(self.path(name)) else None, session)
            before = session.fork()
            try:
                yield
                session.save(self.path(name))
            except BaseException:
                session.return_to(before)
                raise

    # ---- keeping ----

    def fork(self, name: str, new: str) -> Entry:
        """Copy a memory under a new name, which must be free. Raises StoreError, StateError."""
        # Names are kept and listed without PyTorch, which takes seconds to import.
        from byheart.protocol import state_file

        source, target = self.existing(name), self.path(new)
        with self._locked(new):
            if os.path.lexists(target):
                raise StoreError(f"There is a memory '{new}' already; choose another name, or forget it first.")
            state_file.save(target, *state_file.load(source))
        return self.entry(new)

    def forget(self, name: str) -> Path | None:
        """Delete a memory. Raises StoreError where there is none, or where it cannot be deleted.

        Where it is a link to a state file, that file is deleted too, and its path given; any other file stays.
        """
        path = self.existing(name)
        with self._locked(name):
            target = path.resolve() if path.is_symlink() and _is_state(path) else None
            try:
                for file in (target, path):
                    if file is not None:
                        file.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"Memory '{name}' cannot be forgotten: '{file}': {error.strerror}.") from error
        return target

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Before: another writer of this memory is waited for. Inside: there is none. After: the next may begin."""
        self.path(name)
        lock = self._lock(name)
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning("Memory '%s' is being written by another process; waiting for it.", name)
                lock.acquire()
        except OSError as error:
            raise StoreError(f"Memories cannot be kept in '{self.home}': {error}.") from error
        with self._holding(name, lock):
            yield

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.home / f".{name}.lock")

    @contextmanager
    def _holding(self, name: str, lock: BaseFileLock) -> Iterator[None]:
        """Before: the lock is held. Inside: nothing is left of killed writers. After: it is released, its file gone."""
        try:
            with suppress(OSError):
                sweep(self.path(name))
            yield
        finally:
            # Removed while it is held: who waits for it sees that, and locks a new one.
            with suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()

    def _sweep(self, names: Sequence[str]) -> None:
        """Remove what killed writers left, but for memories that are being written now; beside a link's file too."""
        for path in map(self.path, names):
            if path.is_symlink():
                with suppress(OSError):
                    sweep(path)
        for name in {left[1] for left in map(_LEFT.fullmatch, self._files()) if left and _NAME.fullmatch(left[1])}:
            lock = self._lock(name)
            with suppress(OSError):
                lock.acquire(timeout=0)
                with self._holding(name, lock):
                    pass


def _is_state(path: Path) -> bool:
    try:
        header_file.load_header(path)
    except StateError:
        return False
    return True


def _identify(path: Path) -> tuple[int, int, int] | None:
    """The bytes, the number and the time of what is at a path, itself unread; None where nothing is."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size, found.st_ino, found.st_mtime_ns
