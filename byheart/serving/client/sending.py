"""Requests as a client sends them: with its key, again where that is safe, and with the library's own errors."""

from __future__ import annotations

import hashlib
import json
import random
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from byheart.errors import (
    CorruptStateError,
    InputError,
    UnavailableError,
    UsageError,
    require_not_negative,
    require_positive,
)
from byheart.serving.client.refusals import Failed, refused

T = TypeVar("T")
_CONNECT_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_LONGEST_REFUSAL = 1 << 20
_UNREACHED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class Sender:
    """Sends requests to one server; several threads may use it.

    Args:
        retries: how often a request is sent again that came to nothing for a reason that may pass.
    """

    def __init__(self, url: str, api_key: str, *, timeout: float, retries: int) -> None:
        self.url = _root(url)
        if not (api_key.isascii() and api_key.isprintable()):
            raise UsageError("The API key holds characters that no key has; copy it again.")
        require_positive(timeout=timeout)
        require_not_negative(retries=retries)
        self._retries = retries
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        waits = httpx2.Timeout(timeout, connect=_CONNECT_SECONDS)
        try:
            self._client = httpx2.Client(base_url=self.url, headers=headers, timeout=waits)
        except httpx2.InvalidURL as error:
            raise UsageError(f"'{url}' is no address: {error}.") from error
        # Also where nobody closes it.
        weakref.finalize(self, self._client.close)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def call(self, method: str, path: str, body: Any = None, *, safe: bool = False, **more: Any) -> dict[str, Any]:
        """The JSON object that a request is answered with.

        Args:
            body: JSON of the request.
            safe: whether it may be sent twice and still be done once.
            more: ``params`` and ``headers``.

        Raises the error of the library that the server's code stands for.
        """

        def once() -> dict[str, Any]:
            with self._opened(method, path, body, **more) as response:
                return self._object(response.read())

        return self.retrying(once, safe=safe)

    def retrying(self, work: Callable[[], T], *, safe: bool) -> T:
        """The result of ``work``, which raises Failed where it came to nothing; once more where that is safe."""
        attempt = 0
        while True:
            try:
                return work()
            except Failed as failed:
                if attempt >= self._retries or not failed.is_passing or not (safe or failed.is_undone):
                    raise failed.error from failed.__cause__
                pause = _FIRST_PAUSE * 2**attempt if failed.pause is None else failed.pause
            attempt += 1
            # Not all who were refused together come back together.
            time.sleep(min(pause, _LONGEST_PAUSE) * random.uniform(1.0, 1.25))

    def events(self, path: str, body: Any, **more: Any) -> Generator[dict[str, Any], None, None]:
        """The events that a request is answered with, as they come. Raises Failed."""
        with self._opened("POST", path, body, **more) as response:
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    event = self._object(line[6:])
                    if "error" in event:
                        raise self._refusal(event, None)
                    yield event
            raise self._lost("the answer was cut off")

    def download(self, path: str, file: Path, **more: Any) -> None:
        """Put the bytes of an answer into a file. Raises Failed, also where their hash is not the ETag, and OSError."""
        digest = hashlib.sha256()
        with self._opened("GET", path, **more) as response, file.open("wb") as target:
            for block in response.iter_bytes():
                digest.update(block)
                target.write(block)
            if response.headers.get("etag", "").strip('"') != digest.hexdigest():
                error = CorruptStateError(f"What {self.url} has sent is not what it has: the hashes differ; try again.")
                raise Failed(error, is_passing=True)

    def upload(self, path: str, file: Path, **more: Any) -> dict[str, Any]:
        """Send the bytes of a file; gives the JSON object of the answer. Raises Failed, OSError."""
        with file.open("rb") as source, self._opened("PUT", path, content=source, **more) as response:
            return self._object(response.read())

    def read_range(self, path: str, first: int, count: int) -> bytes:
        """Some bytes of what is at a path, fewer where it ends. Raises Failed."""
        headers = {"range": f"bytes={first}-{first + count - 1}"}
        with self._opened("GET", path, headers=headers) as response:
            raw = response.read()
            # Something between may have asked for all of it.
            return raw if response.status_code == 206 else raw[first : first + count]

    @contextmanager
    def _opened(self, method: str, path: str, body: Any = None, **more: Any) -> Iterator[httpx2.Response]:
        """Before: nothing is sent. Inside: the answer has begun, and is a good one. After: it is let go of."""
        if body is not None:
            more["content"] = _encode(body)
            more["headers"] = {**more.get("headers", {}), "content-type": "application/json"}
        try:
            with self._client.stream(method, path, **more) as response:
                if not 200 <= response.status_code < 300:
                    raise self._read_refusal(response)
                yield response
        except _UNREACHED as error:
            message = f"No server answers at {self.url}: {error}. Start `byheart serve` there, or give another URL."
            raise Failed(UnavailableError(message), is_passing=True, is_undone=True) from error
        except httpx2.TransportError as error:
            raise self._lost(str(error) or type(error).__name__) from error
        except httpx2.HTTPError as error:
            raise UnavailableError(f"{self.url} sends what is no answer: {error}.") from error

    def _read_refusal(self, response: httpx2.Response) -> Failed:
        raw = b""
        for block in response.iter_bytes():
            raw += block
            if len(raw) > _LONGEST_REFUSAL:
                break
        try:
            return self._refusal(self._object(raw), response)
        except (UnavailableError, KeyError, TypeError):
            status = response.status_code
            if status >= 500:
                return self._lost(f"something before it answers with status {status}")
            return Failed(
                UsageError(f"{self.url} is no byheart server: it answers with status {status}."), is_passing=False
            )

    def _refusal(self, answer: dict[str, Any], response: httpx2.Response | None) -> Failed:
        error = answer["error"]
        wanted = response.headers.get("retry-after-ms", "") if response is not None else ""
        pause = int(wanted) / 1000 if wanted.isdecimal() and len(wanted) < 10 else None
        return refused(str(error["code"]), str(error["message"]), pause)

    def _lost(self, why: str) -> Failed:
        return Failed(UnavailableError(f"The connection to {self.url} was lost: {why}."), is_passing=True)

    def _object(self, text: str | bytes) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise UnavailableError(f"{self.url} sends what is no answer of a byheart server.")
        return value


def _root(url: str) -> str:
    """The address without the end that OpenAI's clients want. Raises UsageError."""
    root = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parts = urlsplit(root)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address or " " in root or not root.isprintable() or parts.query or parts.fragment:
        raise UsageError(f"A server is named like http://127.0.0.1:8321; it is '{url}'.")
    if parts.username or parts.password:
        raise UsageError("The server's URL holds a name or a password; a key goes into api_key or $BYHEART_API_KEY.")
    return root


def _encode(body: Any) -> bytes:
    """JSON in UTF-8. Raises InputError, UsageError."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise InputError("The text holds half a character (a lone surrogate), which no encoding has.") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"The request cannot be written as JSON: {error}.") from error
