"""Files that somebody else may have written, and files that must not be lost.

What is read is a regular file, inside the folder that was named, and JSON within bounds. What is written replaces the
earlier file as a whole or not at all. Small things that need not be found again are kept in the user's cache folder:

    CACHE/KIND/<hash of the key>.json

A cache that cannot be read or written is no error: what it held is found again. Nothing here knows what files hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import platformdirs

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

Value = TypeVar("Value")
_BLOCK = 1 << 20
LONGEST_JSON = 64 << 20
"""Bytes of a JSON file; the tokenizer files of the largest vocabularies have a third of it."""
DEEPEST_JSON = 64
"""Levels of lists and objects within one another."""
_SCRATCH = r"[a-z0-9_]{8}\.tmp"


def cache_folder() -> Path:
    """Where byheart keeps what it can make again: $BYHEART_CACHE, else the user's cache folder."""
    return Path(os.environ.get("BYHEART_CACHE") or platformdirs.user_cache_path("byheart"))


def require_regular(path: Path, *, inside: Path | None = None) -> Path:
    """The same path, of a regular file. Raises OSError for a pipe, a device or a folder, before it is opened.

    Args:
        inside: the folder in which the file must lie after links are followed.
    """
    if "\0" in str(path):
        raise FileNotFoundError(f"{str(path)!r} cannot be the name of a file")
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"'{path}' is no regular file")
    if inside is not None and not path.resolve().is_relative_to(inside.resolve()):
        raise OSError(f"'{path}' lies outside the folder '{inside}'; put a copy of it there")
    return path


def root(folder: Path) -> Path:
    """What the files of a folder must lie in: itself, or the hub's cache of it, where they are links to its blobs."""
    found = folder.resolve()
    snapshots = (place for place in found.parents if place.name == "snapshots")
    return next((place.parent for place in snapshots if (place.parent / "blobs").is_dir()), folder)


def open_regular(path: Path, *, inside: Path | None = None) -> BinaryIO:
    """A regular file, opened for reading. Raises OSError as ``require_regular`` does."""
    require_regular(path, inside=inside)
    # A pipe may have taken its place since; opening one would wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError(f"'{path}' is no regular file")
    return file


def read_json(path: Path, *, inside: Path | None = None, longest: int = LONGEST_JSON) -> Any:
    """What a JSON file holds. Raises OSError as ``require_regular`` does, and ValueError as ``parse_json`` does."""
    size = require_regular(path, inside=inside).stat().st_size
    if size > longest:
        raise ValueError(f"it has {size} bytes, more than {longest}")
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str, *, unique: bool = False, most: int | None = None) -> Any:
    """What JSON text says. Raises ValueError where it is broken, nested too deep, or holds what is no number.

    Args:
        unique: refuse an object that has two values of one name.
        most: values that it may have at the most; more are refused before time is spent on them.
    """
    if most is not None:
        _require_few(text, most)
    try:
        value = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_distinct if unique else None
        )
    except RecursionError as error:
        raise ValueError("lists and objects are nested too deep") from error
    _require_shallow(value)
    return value


def _require_few(text: str, most: int) -> None:
    if _count_values(text) > most:
        # Again, and slower, without what stands in strings.
        bare = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
        if _count_values(bare) > most:
            raise ValueError(f"it has more than {most:,} values")


def _count_values(text: str) -> int:
    """How many values JSON text has at the least, were there no strings in it."""
    return sum(map(text.count, "{[,"))


def _require_shallow(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST_JSON:
            raise ValueError(f"lists and objects are nested deeper than {DEEPEST_JSON} levels")
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has two values of one name")
    return found


def _finite(number: str) -> float:
    return float(number) if math.isfinite(float(number)) else _no_number(number[:20])


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file as a whole. Before: it is as it was. Inside: an empty file to be written. After: it is in place.

    On an error, the earlier file remains and the new one is gone. Where ``path`` is a link, the file that it points to
    is replaced; the earlier file's permissions stay. A killed process leaves its file for ``sweep``. Raises OSError.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    held, scratch = _make_scratch(target)
    try:
        yield scratch
        with contextlib.suppress(FileNotFoundError):
            scratch.chmod(stat.S_IMODE(target.stat().st_mode))
        sync(scratch)
        scratch.replace(target)
        with contextlib.suppress(OSError):
            sync(target.parent)
    finally:
        scratch.unlink(missing_ok=True)
        held.close()


def _make_scratch(target: Path) -> tuple[BinaryIO, Path]:
    """An empty file beside the target, and what says while it is open that somebody is writing that file."""
    while True:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".tmp")
        held = os.fdopen(handle, "rb")
        if fcntl is None:
            # There a file that is open cannot be renamed.
            held.close()
            return held, Path(name)
        # Waits for one who is sweeping it, for it is new, and free.
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        if os.path.exists(name):
            return held, Path(name)
        held.close()


def sweep(path: Path) -> int:
    """Remove what killed writers of ``path`` left beside it, and nothing of those at work; gives the bytes."""
    target = path.resolve()
    left = re.compile(rf"\.{re.escape(target.stem)}[.-]{_SCRATCH}")
    return sum(_remove_free(found) for found in target.parent.glob(".*.tmp") if left.fullmatch(found.name))


def _remove_free(scratch: Path) -> int:
    """Remove a file that nobody is writing; gives its bytes, 0 where it stays."""
    # One that somebody is writing is locked, which is the error.
    with contextlib.suppress(OSError), open_regular(scratch) as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        scratch.unlink()
        return os.fstat(file.fileno()).st_size
    return 0


def recall(kind: str, key: str) -> Any:
    """What was kept under ``key``, or None."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(_cache_file(kind, key))
    return None


def keep(kind: str, key: str, value: Any) -> None:
    """Keep ``value``, which JSON can hold, unless it is there already."""
    if recall(kind, key) != value:
        with contextlib.suppress(OSError), replacing(_cache_file(kind, key)) as file:
            file.write_text(json.dumps(value), encoding="utf-8")


def cached(kind: str, key: str, find: Callable[[], Value]) -> Value:
    """What was kept under ``key``; ``find`` gives it the first time, and each time where the key is empty."""
    found: Value | None = recall(kind, key) if key else None
    if found is None:
        found = find()
        if key:
            keep(kind, key, found)
    return found


def digest_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make what was written to a file, or renamed in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cache_file(kind: str, key: str) -> Path:
    # Hashed: a key may come from somebody else's file, and must not name a path.
    return cache_folder() / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
