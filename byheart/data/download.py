"""Fetching a file by its URL: whole and with the right digest, or not at all.

    target.part, target.part.tag    what has arrived, and what says which file it is a part of

A download that was interrupted is resumed where the server can, and begun again where it cannot or where the file has
changed since. Only when all bytes are there, and the digest is right, does the file get its name.
"""

from __future__ import annotations

import errno
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from byheart.errors import InputError
from byheart.files import digest_of_file, sync

Progress = Callable[[int, int], None]
_CHUNK = 1 << 20
_PATIENCE = 60.0
_GONE = (401, 403, 404, 410)


def fetch(url: str, target: Path, *, sha256: str = "", progress: Progress = lambda done, total: None) -> str:
    """Download a file, unless it is there; gives its SHA-256.

    Args:
        sha256: what it must be, where that is known.
        progress: called with the bytes that are there and those in all, 0 where the server does not say.

    Raises InputError where the URL cannot be read, the file is another one, or there is no space.
    """
    if target.is_file():
        return _require(target, sha256, f"'{target}' is not the file that was at {url}. Remove it to fetch it again")
    if not url.startswith(("https://", "http://")):
        raise InputError(f"'{url}' is no address of a file; it begins with https:// or http://.")
    part, tag = _beside(target)
    with _explained(url, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(url, part, tag, progress)
        sync(part)
    changed = f"{url} has changed: another file is there now than the one that results were made from"
    try:
        found = _require(part, sha256, changed)
    except InputError:
        _drop(target)
        raise
    part.replace(target)
    tag.unlink(missing_ok=True)
    return found


@contextmanager
def require_space(path: Path) -> Iterator[None]:
    """Inside: a file is written. Where there is no space for it, that is an InputError that says how much there is."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"'{path}' could not be written: there is no space left. Nothing half is left behind; make room, then run "
            "the same again."
        ) from error


def _download(url: str, part: Path, tag: Path, progress: Progress) -> None:
    done = part.stat().st_size if part.exists() and tag.exists() else 0
    try:
        answer = _open(url, tag.read_text(encoding="utf-8") if done else "", done)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # Nothing is there after the part: it may be whole, or of a longer file that was there before.
        part.unlink()
        done, answer = 0, _open(url, "", 0)
    with answer:
        done = done if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = int(answer.headers.get("Content-Length") or 0)
        total = done + length if length else 0
        _mark(tag, answer.headers)
        with part.open("ab" if done else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    if done < total:
        raise ConnectionError(f"only {done:,} of {total:,} bytes have arrived")


def _open(url: str, tag: str, done: int) -> Any:
    resumed = {"Range": f"bytes={done}-", "If-Range": tag} if done else {}
    # Without this the library asks for no compression, which would have another length.
    request = urllib.request.Request(url, headers={"User-Agent": "byheart", "Accept-Encoding": "identity", **resumed})
    return urllib.request.urlopen(request, timeout=_PATIENCE)


def _mark(tag: Path, headers: Any) -> None:
    """Keep what names the file's version; without it a half download begins again."""
    version = headers.get("ETag") or ""
    version = version if version.startswith('"') else headers.get("Last-Modified") or ""
    if version:
        tag.write_text(version, encoding="utf-8")
    else:
        tag.unlink(missing_ok=True)


@contextmanager
def _explained(url: str, target: Path) -> Iterator[None]:
    """Inside: a file is fetched. What went wrong becomes an InputError that says what to do."""
    try:
        with require_space(target):
            yield
    except InputError:
        _drop(target)
        raise
    except urllib.error.HTTPError as error:
        gone = "is gone, or cannot be read by everybody" if error.code in _GONE else "could not be read"
        raise InputError(
            f"{url} {gone}: the server says {error.code} {error.reason}. Where you have the file, put it at '{target}'."
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        part, _ = _beside(target)
        kept = f" {part.stat().st_size:,} bytes are kept; the same again resumes from there." if part.exists() else ""
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"{url} could not be fetched: {reason}.{kept} Without a network, put the file at '{target}'."
        ) from error
    except OSError as error:
        raise InputError(f"'{target}' could not be written: {error}.") from error


def _require(path: Path, sha256: str, wrong: str) -> str:
    found = digest_of_file(path)
    if sha256 and found != sha256:
        size = path.stat().st_size
        raise InputError(f"{wrong} ({size:,} bytes; SHA-256 {found[:16]}..., expected {sha256[:16]}...).")
    return found


def _beside(target: Path) -> tuple[Path, Path]:
    return target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.tag")


def _drop(target: Path) -> None:
    for left in _beside(target):
        left.unlink(missing_ok=True)
