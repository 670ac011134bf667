"""Memories by name: one state file each in one folder, safe for several writers at once.

A name is taken by the first save. Writers of one memory wait for one another; readers need not, because a file is
replaced as a whole. What a file holds is not known here beyond its header.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import FileLock, Timeout

from byheart.errors import StateError, StoreError, UnknownNameError, UsageError
from byheart.protocol import state_file as states
from byheart.protocol.state import Header

if TYPE_CHECKING:
    from byheart.model.backbone import Backbone
    from byheart.session.session import Session

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SUFFIX = ".safetensors"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One memory of a store. A damaged one has no header but a ``problem``."""

    name: str
    path: Path
    bytes: int
    header: Header | None
    problem: str = ""


class Store:
    """Named memories in ``home``; without it, in $BYHEART_HOME or the user's data folder."""

    def __init__(self, home: str | Path | None = None) -> None:
        folder = home or os.environ.get("BYHEART_HOME") or platformdirs.user_data_path("byheart")
        self.home = Path(folder).expanduser()

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
        """All names, sorted."""
        found = (path.name.removesuffix(_SUFFIX) for path in self.home.glob(f"*{_SUFFIX}"))
        return sorted(name for name in found if _NAME.fullmatch(name))

    def entry(self, name: str) -> Entry:
        """A memory's header and bytes. Raises StoreError where there is none, StateError where it is damaged."""
        path = self.existing(name)
        return Entry(name, path, path.stat().st_size, states.load_header(path))

    def entries(self) -> list[Entry]:
        """All memories; a damaged one says so and hides no other."""
        return [self._examined(name) for name in self.names()]

    def _examined(self, name: str) -> Entry:
        try:
            return self.entry(name)
        except StateError as error:
            path = self.path(name)
            return Entry(name, path, path.stat().st_size, None, str(error))

    def existing(self, name: str) -> Path:
        """Where a memory is. Raises StoreError where there is none, with the nearest name."""
        path = self.path(name)
        if not path.is_file():
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise StoreError(f"There is no memory '{name}'. {hint}`byheart list` shows all.")
        return path

    # ---- sessions ----

    def open(
        self,
        name: str,
        *,
        new: bool = False,
        model: str | Backbone | None = None,
        method: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        **options: Any,
    ) -> Session:
        """A session that continues a memory.

        Args:
            new: where there is no such memory, begin an empty one; it exists once it is saved.
            model, method, options: of a new memory, as for ``session.load``; an old one must have been made with them.
                An opened Backbone serves any number of memories: a model is then opened once in a process.

        Raises StoreError, StateError, ModelError or UsageError.
        """
        # Names are kept and listed without transformers, which takes seconds to import.
        from byheart.session import opening

        if new and not self.exists(name):
            choices: dict[str, Any] = {"model": model, "method": method, "dtype": dtype, "device": device, **options}
            return opening.load(**{name: value for name, value in choices.items() if value is not None})
        path = self.existing(name)
        header = states.load_header(path)
        # Learned parts may have moved: where they are now is not how the memory was made.
        learned = opening.folder_of(method) if header.learned and method else ""
        _require_agreement(name, header, None if learned else method, options)
        return opening.open_state(path, model=model or "", method=learned, dtype=dtype, device=device)

    @contextmanager
    def updating(self, name: str, session: Session) -> Iterator[None]:
        """Change a memory so that no other writer's text is lost.

        Before: other writers are waited for. Inside: ``session`` has all that was saved. After: it is saved; on an
        error it is not, and the file is as it was. Raises StoreError, StateError.
        """
        with self._locked(name):
            self._catch_up(name, session)
            yield
            session.save(self.path(name))

    def _catch_up(self, name: str, session: Session) -> None:
        if self.exists(name):
            if states.load_header(self.path(name)).written != session.header.written:
                session.load(self.path(name))
        elif session.header.written:
            raise StoreError(f"Memory '{name}' was forgotten while it was in use; write the text into a new one.")

    # ---- keeping ----

    def fork(self, name: str, new: str) -> Entry:
        """Copy a memory under a new name, which must be free. Raises StoreError, StateError."""
        source, target = self.existing(name), self.path(new)
        with self._locked(new):
            if target.exists():
                raise StoreError(f"There is a memory '{new}' already; choose another name, or forget it first.")
            states.save(target, *states.load(source))
        return self.entry(new)

    def forget(self, name: str) -> None:
        """Delete a memory. Raises StoreError where there is none."""
        path = self.existing(name)
        with self._locked(name):
            path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Before: another writer of this memory is waited for. Inside: there is none. After: the next may begin."""
        self.path(name)
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.home / f".{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning("Memory '%s' is being written by another process; waiting for it.", name)
                lock.acquire()
        except OSError as error:
            raise StoreError(f"Memories cannot be kept in '{self.home}': {error}.") from error
        try:
            yield
        finally:
            lock.release()


def _require_agreement(name: str, header: Header, method: str | None, options: dict[str, Any]) -> None:
    """Raise UsageError for a choice that is not how the memory was made. The model is compared by its weights later."""
    recorded = {"method": header.learned or header.method, **header.options}
    for choice, value in {"method": method, **options}.items():
        if choice not in recorded:
            raise UnknownNameError(f"option of {header.method}", choice, header.options)
        if value not in (None, recorded[choice]):
            raise UsageError(
                f"Memory '{name}' was made with {choice} {recorded[choice]!r}, not {value!r}; "
                "leave that out, or write under another name."
            )
