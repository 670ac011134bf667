"""Who may ask: keys, of which only hashes are kept, each of one tenant.

A file of keys has a line for each, and may be changed while the server runs: a line that is taken out is a key that
is revoked.

    {"tenant": "alice", "sha256": "9f86d081...", "name": "laptop"}
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
from pathlib import Path
from typing import Any

from byheart.errors import UsageError
from byheart.files import parse_json

log = logging.getLogger(__name__)

LOCAL = "local"
"""The tenant of who needs no key, and of the command line's own memories."""
_TENANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LONGEST_LINE, _LONGEST_KEY = 4096, 1024


class Accounts:
    """The keys of a file, read again whenever it changes; without a file, everybody is the tenant ``local``."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: list[tuple[bytes, str]] = []
        self._lock = threading.Lock()

    @property
    def are_open(self) -> bool:
        """Whether no key is needed."""
        return self._path is None

    def find(self, key: str | None) -> str | None:
        """The tenant whose key this is; None for a key that is missing, wrong or revoked.

        How long it takes says nothing of the keys: hashes are compared, all of them, each in constant time.
        """
        if self._path is None:
            return LOCAL
        if key is None or len(key) > _LONGEST_KEY:
            return None
        given, found = _hash(key).encode(), None
        for known, tenant in self._current():
            if hmac.compare_digest(known, given):
                found = tenant
        return found

    def _current(self) -> list[tuple[bytes, str]]:
        """The keys as the file has them now; none where it cannot be read."""
        with self._lock:
            try:
                found = os.stat(str(self._path))
                seen = (found.st_mtime_ns, found.st_size, found.st_ino)
                if seen != self._seen:
                    self._keys = _read(Path(str(self._path)))
                    self._seen = seen
            except (OSError, UnicodeDecodeError) as error:
                if self._seen is not None or not self._keys:
                    log.error("The keys cannot be read, so none is taken: %s", error)
                self._keys, self._seen = [], None
            return self._keys


def make_key(path: Path, tenant: str, *, name: str = "") -> str:
    """A new key of a tenant, which is told this once; the file has its hash. Raises UsageError, OSError."""
    if not _TENANT.fullmatch(tenant):
        raise UsageError(
            f"'{tenant}' cannot name a tenant; a name is up to 100 letters, digits, '.', '_' and '-', "
            "and begins with a letter, a digit or '_'."
        )
    key = f"sk-byheart-{secrets.token_urlsafe(32)}"
    line: dict[str, str] = {"tenant": tenant, "sha256": _hash(key), **({"name": name} if name else {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Readable by its owner alone: hashes of keys tell nothing, names of tenants may.
    with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b") as file:
        file.seek(0, os.SEEK_END)
        is_cut = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
        file.write(b"\n" * is_cut + json.dumps(line).encode() + b"\n")
    return key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _read(path: Path) -> list[tuple[bytes, str]]:
    """The keys of a file; a line that is none is logged, and the others count."""
    keys = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        entry = _parse(line)
        if entry is None:
            log.error('Line %d of the keys is not like {"tenant": "alice", "sha256": "<64 digits>"}.', number)
        else:
            keys.append(entry)
    return keys


def _parse(line: str) -> tuple[bytes, str] | None:
    try:
        entry: Any = parse_json(line, unique=True) if len(line) <= _LONGEST_LINE else None
    except ValueError:
        return None
    tenant, digest = (entry.get("tenant"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if not isinstance(tenant, str) or not isinstance(digest, str):
        return None
    is_whole = _TENANT.fullmatch(tenant) and _HASH.fullmatch(digest.lower())
    return (digest.lower().encode(), tenant) if is_whole else None
