"""State files as objects that never change, each under a key: in a local folder, or in a bucket elsewhere.

A key is ``TENANTHASH/ab/cdef….safetensors``, made of the SHA-256 of the file, so that nothing is stored twice for one
tenant, and nothing is shared between two. What an object holds, and who refers to it, is not known here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from byheart.errors import CorruptStateError, UnavailableError, UsageError
from byheart.files import cache_folder, sync
from byheart.store.scratch import Scratch

_SUFFIX = ".safetensors"
_KEY = re.compile(r"[0-9a-f]{32}/[0-9a-f]{2}/[0-9a-f]{62}\.safetensors")
_SCRATCH = ".scratch"


def object_prefix(tenant: str) -> str:
    """Where a tenant's objects are. The name itself is no part of it: a name may be any text."""
    return hashlib.sha256(f"byheart tenant\0{tenant}".encode()).hexdigest()[:32]


def object_key(tenant: str, sha256: str) -> str:
    """The key of a tenant's object."""
    return f"{object_prefix(tenant)}/{sha256[:2]}/{sha256[2:]}{_SUFFIX}"


def is_key(text: str) -> bool:
    """Whether this is the key of an object; what else lies in a bucket is left alone."""
    return _KEY.fullmatch(text) is not None


def key_hash(key: str) -> str:
    """The SHA-256 that a key was made of."""
    return "".join(key.removesuffix(_SUFFIX).split("/")[1:])


class Objects(ABC):
    """Where objects are. Every method raises UnavailableError where they cannot be reached."""

    scratch: Scratch

    @abstractmethod
    def put(self, key: str, file: Path) -> None:
        """Store a file, durably, unless it is there already. The file stays where it is."""

    @abstractmethod
    def has(self, key: str) -> bool:
        """Whether there is such an object."""

    @abstractmethod
    def fetch(self, key: str) -> Path | None:
        """A local file with the object's bytes; None where there is none. Raises CorruptStateError."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete an object, for certain, if there is one."""

    @abstractmethod
    def stored(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """The keys below a tenant's prefix, or all; and when each was stored, in milliseconds since 1970."""

    @abstractmethod
    def cached(self) -> Iterator[str]:
        """Keys of which there is a copy here; a copy is deleted by ``drop_copy``."""

    @abstractmethod
    def drop_copy(self, key: str) -> None:
        """Delete the copy here, where it is not the object itself."""

    @abstractmethod
    def trim(self, most: int) -> int:
        """Delete the copies here that were not used for longest, down to ``most`` bytes; gives how many."""

    @abstractmethod
    def check(self) -> None:
        """Raise UnavailableError unless objects can be stored."""


def open_objects(where: str, cache: Path | None = None) -> Objects:
    """The objects in a folder, or below a URL. Raises UsageError."""
    if "://" not in where or where.startswith("file://"):
        return LocalObjects(Path(where.removeprefix("file://")).expanduser())
    # An extra, and slow to import.
    from byheart.store.bucket import BucketObjects

    return BucketObjects(where, cache or cache_folder() / "objects")


class LocalObjects(Objects):
    """Objects as files of a folder."""

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"Memories cannot be kept in '{folder}', which is a file; give a folder.")
        self.folder = folder
        self.scratch = Scratch(folder / _SCRATCH)

    def put(self, key: str, file: Path) -> None:
        """Store a file: a second name for it where the file system can, else a copy."""
        target = self.folder / key
        with reaching(target):
            _make_folders(target.parent)
            sync(file)
            try:
                os.link(file, target)
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOENT):
                    raise
                with placing(self.scratch, target) as copy:
                    shutil.copyfile(file, copy)
            # Also where another one stored it just now, and has not come this far.
            _sync_folder(target.parent)

    def has(self, key: str) -> bool:
        """Whether there is such a file."""
        with reaching(self.folder / key):
            return (self.folder / key).is_file()

    def fetch(self, key: str) -> Path | None:
        """The file itself."""
        return self.folder / key if self.has(key) else None

    def delete(self, key: str) -> None:
        """Delete the file. Its folder stays: somebody may be about to put another one there."""
        target = self.folder / key
        with reaching(target), suppress(FileNotFoundError):
            target.unlink()
            _sync_folder(target.parent)

    def stored(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """All files below the prefix."""
        with reaching(self.folder):
            for path in sorted((self.folder / prefix).rglob(f"*{_SUFFIX}")):
                key = path.relative_to(self.folder).as_posix()
                with suppress(FileNotFoundError):
                    if not key.startswith(_SCRATCH) and not path.name.startswith("."):
                        yield key, path.stat().st_mtime_ns // 1_000_000

    def cached(self) -> Iterator[str]:
        """None: the objects are here themselves."""
        return iter(())

    def drop_copy(self, key: str) -> None:
        """Nothing: the file is the object."""

    def trim(self, most: int) -> int:
        """None: what is here is no copy."""
        return 0

    def check(self) -> None:
        """Try to write a file."""
        with reaching(self.folder):
            (self.scratch.folder / "check").write_bytes(b"")


@contextmanager
def placing(scratch: Scratch, target: Path) -> Iterator[Path]:
    """Before: nothing. Inside: an empty file to be written, where a killed process's are swept. After: in place."""
    handle, name = tempfile.mkstemp(dir=scratch.folder)
    os.close(handle)
    copy = Path(name)
    try:
        yield copy
        sync(copy)
        _make_folders(target.parent)
        copy.replace(target)
        _sync_folder(target.parent)
    finally:
        copy.unlink(missing_ok=True)


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it, each durable in the one above."""
    if not folder.is_dir():
        _make_folders(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    # Windows opens no folders.
    if os.name != "nt":
        sync(folder)


@contextmanager
def reaching(where: object) -> Iterator[None]:
    """Before and after: nothing. Inside: an OSError becomes an UnavailableError that says ``where``."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"The memories' files cannot be used now: '{where}': {error.strerror or error}; make room or "
            "access, and try again."
        ) from error


def require_hash(path: Path, digest: str, key: str) -> None:
    """Raise CorruptStateError where what was fetched is not what was stored."""
    if digest != key_hash(key):
        path.unlink(missing_ok=True)
        raise CorruptStateError(
            f"Object '{key}' is not what was stored there (its hash is {digest}); restore it from a copy."
        )
