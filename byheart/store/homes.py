"""Which store a folder has: one file a memory, or a catalogue; and how the first becomes the second."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from byheart.errors import ByheartError, StoreError, UsageError
from byheart.files import digest_of_file
from byheart.protocol.state import Header
from byheart.store.folder import Store

if TYPE_CHECKING:
    from byheart.store.catalogue_store import CatalogueStore

    AnyStore: TypeAlias = Store | CatalogueStore

CATALOGUE = "byheart.sqlite3"
"""The file that makes a folder one with a catalogue."""


def open_store(home: str | Path | None = None) -> AnyStore:
    """The memories in ``home``: those of its catalogue where it has one, else a file each.

    Without ``home``: in $BYHEART_HOME or the user's data folder. Raises UsageError without the extra ``serve`` where
    that is needed, StoreError.
    """
    folder = Store(home)
    return _open_catalogue(folder.home) if (folder.home / CATALOGUE).exists() else folder


def require_catalogue(home: str | Path | None = None, *, about: str = "") -> CatalogueStore:
    """The memories of a folder's catalogue; new ones are about ``about``. Raises UsageError where there is none."""
    found = Store(home).home
    if not (found / CATALOGUE).exists():
        raise UsageError(
            f"Memories in '{found}' are kept as one file each, without versions and subjects; `byheart migrate` takes "
            "them over into a catalogue."
        )
    return _open_catalogue(found, about)


def _open_catalogue(home: Path, about: str = "") -> CatalogueStore:
    try:
        from byheart.store.catalogue_store import CatalogueStore
    except ImportError as error:
        raise UsageError(f"The catalogue in '{home}' needs SQLAlchemy: pip install \"byheart[serve]\".") from error
    return CatalogueStore(home, about)


@dataclass(frozen=True)
class Migrated:
    """A memory that was taken over, or why it was left where it is."""

    name: str
    problem: str = ""


def migrate(home: str | Path | None = None) -> Iterator[Migrated]:
    """Take the memories of a folder over into its catalogue, each as version 1; gives what became of each.

    A file goes once its bytes are in the catalogue for certain; what fails stays as it is. Run again it continues.
    """
    folder = Store(home)
    names = folder.names()
    store = _open_catalogue(folder.home)
    for name in names:
        try:
            _take_over(folder.path(name), name, store)
        except (ByheartError, OSError) as error:
            yield Migrated(name, str(error))
        else:
            yield Migrated(name)


def _take_over(path: Path, name: str, store: CatalogueStore) -> None:
    from byheart.protocol import state_file

    if path.is_symlink():
        raise StoreError(f"it is a link to '{os.readlink(path)}'; put the file itself there")
    # Whole, as its own hash says; nothing later would look at all of it.
    _, header = state_file.load(path)
    copy = store.memories.scratch / f"{digest_of_file(path)}.safetensors"
    shutil.copyfile(path, copy)
    try:
        # Of the copy: the file may have been replaced meanwhile.
        _commit(store, name, copy, digest_of_file(copy), header)
    finally:
        copy.unlink(missing_ok=True)
    path.unlink()


def _commit(store: CatalogueStore, name: str, copy: Path, sha256: str, header: Header) -> None:
    """Make the file version 1, unless it is already, from an earlier run that was ended before it removed the file."""
    known = store.mine.list(name=name).data
    memory = known[0] if known else store.mine.create(name, model=header.model, method=header.method)
    if memory.version == 1 and memory.sha256 == sha256:
        return
    if memory.version:
        raise StoreError("there is another memory of this name in the catalogue; rename the file")
    store.mine.commit(name, copy, sha256=sha256, header=header, operation="import", entry={}, expected=0)
