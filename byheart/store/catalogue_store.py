"""Named memories of one user, kept in a catalogue: the methods of ``folder.Store``, with earlier versions beside them.

Writers of one memory on this machine wait for one another, as in a folder; who changes it elsewhere meanwhile, as a
server may, wins, and the later one is told.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from byheart.errors import MissingError, StateError
from byheart.files import digest_of_file
from byheart.protocol import header_file
from byheart.store.memories import Memories
from byheart.store.objects import reaching
from byheart.store.sessions import SessionStore, catch_up
from byheart.store.values import Deleted, Memory, Version, require_gone, require_subject

if TYPE_CHECKING:
    from byheart.session.session import Session
    from byheart.store.folder import Entry

TENANT = "local"
"""Whose memories those of the command line are."""

log = logging.getLogger(__name__)


class CatalogueStore(SessionStore):
    """Named memories in the catalogue of a folder, which is made where there is none.

    Args:
        about: whom those that are made now are about; a memory that is there must be about the same.
    """

    def __init__(self, home: Path, about: str = "") -> None:
        self.home, self.about = home, about
        self.memories = Memories.at(home)
        self.mine = self.memories.of(TENANT)

    # ---- names ----

    def exists(self, name: str) -> bool:
        """Whether something has been saved under ``name``. Raises StoreError for what cannot be a name."""
        with suppress(MissingError):
            return self.mine.get(name).version > 0
        return False

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(memory.name for memory in self._all() if memory.name)

    def _all(self) -> Iterator[Memory]:
        after: str | None = None
        while True:
            page = self.mine.list(limit=100, after=after)
            yield from page.data
            if not page.has_more:
                return
            after = page.data[-1].id

    def require(self, name: str) -> None:
        """Raise MissingError with the nearest name where there is no such memory, written into or not."""
        with self._suggesting(name):
            self.mine.get(name)

    def existing(self, name: str) -> Path:
        """A memory's state file, not to be written to. Raises MissingError with the nearest name, StateError."""
        with self._suggesting(name):
            return self.mine.fetch(self.mine.version(name))

    @contextmanager
    def _suggesting(self, name: str) -> Iterator[None]:
        """Before and after: nothing. Inside: a MissingError is told with the nearest name."""
        try:
            yield
        except MissingError as error:
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f" Did you mean '{near[0]}'?" if near and near[0] != name else ""
            raise MissingError(f"{error}{hint} `byheart list` shows all.") from error

    def entry(self, name: str) -> Entry:
        """A memory's header and bytes. Raises MissingError, StateError where it is damaged."""
        # Listing imports what it needs when it is needed, and this module knows of folders only their rows.
        from byheart.store.folder import Entry

        path = self.existing(name)
        return Entry(name, path, path.stat().st_size, header_file.load_header(path))

    def entries(self) -> list[Entry]:
        """All memories into which something was written; a damaged one says so and hides no other."""
        return [entry for entry in map(self._examine, self.names()) if entry is not None]

    def _examine(self, name: str) -> Entry | None:
        """A memory, whole or damaged; None where it was forgotten meanwhile, or is empty."""
        from byheart.store.folder import Entry

        try:
            return self.entry(name)
        except MissingError:
            return None
        except (StateError, OSError) as error:
            with suppress(MissingError):
                return Entry(name, self.home, self.mine.get(name).bytes, None, str(error))
            return None

    # ---- sessions ----

    @contextmanager
    def updating(self, name: str, session: Session) -> Iterator[None]:
        """Change a memory so that no other writer's text is lost, as ``folder.Store.updating``.

        Raises StoreError, StateError; ConflictError where it was changed elsewhere meanwhile, UsageError where it is
        about somebody else.
        """
        with self._locked(name):
            memory = self.mine.get(name) if self._known(name) else None
            if memory is not None:
                require_subject(memory, self.about)
            version = memory.version if memory else 0
            catch_up(name, self.existing(name) if version else None, session)
            before = session.fork()
            try:
                yield
                self._save(name, session, version, len(before.header.written))
            except BaseException:
                session.return_to(before)
                raise

    def _known(self, name: str) -> bool:
        with suppress(MissingError):
            return bool(self.mine.get(name))
        return False

    def _save(self, name: str, session: Session, version: int, known: int) -> Version:
        with reaching("scratch files"), tempfile.TemporaryDirectory(dir=self.memories.scratch) as folder:
            file = Path(folder) / "state.safetensors"
            session.save(file)
            header = session.header
            if not self._known(name):
                made: dict[str, Any] = {"model": header.model, "method": header.method, "options": header.options}
                self.mine.create(name, subject=self.about, **made)
            entry = asdict(header.written[-1]) if len(header.written) > known else {}
            given: dict[str, Any] = {"sha256": digest_of_file(file), "header": header, "entry": entry}
            return self.mine.commit(name, file, operation="write", expected=version, **given)

    # ---- keeping ----

    def fork(self, name: str, new: str) -> Entry:
        """A copy of a memory under a new name, which shares its bytes. Raises MissingError, ConflictError."""
        self.mine.fork(name, new)
        return self.entry(new)

    def forget(self, name: str) -> Path | None:
        """Delete a memory with all its versions. Raises MissingError; StoreError where bytes are left."""
        with self._locked(name):
            require_gone(self.mine.delete(name))
            self.memories.purge()
        return None

    def versions(self, name: str) -> Iterator[Version]:
        """All versions of a memory, the newest first. Raises MissingError."""
        after: int | None = None
        while True:
            page = self.mine.versions(name, limit=100, after=after)
            yield from page.data
            if not page.has_more:
                return
            after = page.data[-1].number

    def restore(self, name: str, number: int) -> Version:
        """Make an earlier version of a memory the newest once more. Raises MissingError, StateError."""
        return self.mine.restore(name, number)

    def erase(self, subject: str) -> Deleted:
        """Delete all memories about a subject. Raises StoreError where bytes are left."""
        return require_gone(self.mine.erase(subject))

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Before: another writer on this machine is waited for. Inside: there is none. After: the next may begin."""
        # A name may have more bytes than that of a file.
        lock = FileLock(self.home / f".{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.lock")
        with reaching(self.home):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning("Memory '%s' is being written by another process; waiting for it.", name)
                lock.acquire()
        try:
            self.memories.sweep_scratch()
            yield
        finally:
            # Removed while it is held: who waits for it sees that, and locks a new one.
            with suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()
