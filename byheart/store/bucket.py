"""Objects in a bucket of S3, GCS or Azure, with copies in a local folder.

A copy is looked for before the bucket is asked; it was compared with its hash when it was fetched. Needs the extra
``serve``; addresses and credentials are those of obstore: https://developmentseed.org/obstore.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import from_url

from byheart.errors import UnavailableError, UsageError
from byheart.store.objects import LocalObjects, Objects, placing, reaching, require_hash
from byheart.store.scratch import Scratch

_RETRY: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}
_AT_ONCE = 64 << 20
"""Bytes that are sent as one, which only then can be refused where the object is there; more goes up in parts."""


class BucketObjects(Objects):
    """Objects below a URL.

    Raises UsageError for a URL that means no bucket.
    """

    def __init__(self, url: str, cache: Path) -> None:
        about = {} if url.startswith("memory:") else {"client_options": _client_options(), "retry_config": _RETRY}
        try:
            self.bucket: Any = from_url(url, **about)
        except (BaseError, ValueError, OSError) as error:
            raise UsageError(
                f"Objects cannot be kept there: {error}. Give a folder, s3://BUCKET/PATH, gs://... or az://..."
            ) from error
        self._copies = LocalObjects(cache)
        self.scratch: Scratch = self._copies.scratch

    def put(self, key: str, file: Path) -> None:
        """Send a file."""
        with _asking(), reaching(file):
            if file.stat().st_size <= _AT_ONCE:
                with suppress(AlreadyExistsError):
                    obstore.put(self.bucket, key, file, mode="create")
            elif not self.has(key):
                obstore.put(self.bucket, key, file)

    def has(self, key: str) -> bool:
        """Whether the bucket has such an object."""
        with _asking():
            try:
                obstore.head(self.bucket, key)
            except (NotFoundError, FileNotFoundError):
                return False
        return True

    def fetch(self, key: str) -> Path | None:
        """The copy here, fetched where there is none."""
        copy = self._copies.fetch(key)
        if copy is None:
            return self._download(key)
        # What was used last is kept longest.
        with suppress(OSError):
            os.utime(copy)
        return copy

    def _download(self, key: str) -> Path | None:
        target, digest = self._copies.folder / key, hashlib.sha256()
        with _asking(), reaching(target):
            try:
                found = obstore.get(self.bucket, key)
            except (NotFoundError, FileNotFoundError):
                return None
            with placing(self.scratch, target) as copy:
                with copy.open("wb") as file:
                    for part in found.stream():
                        digest.update(part)
                        file.write(part)
                require_hash(copy, digest.hexdigest(), key)
        return target

    def delete(self, key: str) -> None:
        """Delete an object and the copy here."""
        with _asking(), suppress(NotFoundError, FileNotFoundError):
            obstore.delete(self.bucket, key)
        self._copies.delete(key)

    def stored(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """What the bucket lists."""
        with _asking():
            for some in obstore.list(self.bucket, prefix or None):
                for found in some:
                    yield found["path"], round(found["last_modified"].timestamp() * 1000)

    def cached(self) -> Iterator[str]:
        """All copies here."""
        return (key for key, _ in self._copies.stored())

    def drop_copy(self, key: str) -> None:
        """Delete the copy here."""
        self._copies.delete(key)

    def trim(self, most: int) -> int:
        """Delete the copies that were not used for longest."""
        found = sorted(self._copies.stored(), key=lambda copy: copy[1], reverse=True)
        size = dropped = 0
        for key, _ in found:
            with suppress(FileNotFoundError):
                size += (self._copies.folder / key).stat().st_size
                if size > most:
                    self._copies.delete(key)
                    dropped += 1
        return dropped

    def check(self) -> None:
        """Ask for an object that is not there."""
        self.has("check")


def _client_options() -> Any:
    """How the bucket's server is spoken to; options that are given hide obstore's own variable for plain HTTP."""
    allows = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
    return {"timeout": "60s", "connect_timeout": "5s", "allow_http": allows}


@contextmanager
def _asking() -> Iterator[None]:
    """Before and after: nothing. Inside: what the bucket's server says becomes an UnavailableError."""
    try:
        yield
    except (BaseError, TimeoutError, ConnectionError) as error:
        said = " ".join(str(error).split())[:500]
        raise UnavailableError(f"The bucket with the memories' files cannot be used now: {said}; try again.") from error
