"""Memories of a server, in the library's own words; needs neither PyTorch nor what a server needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from byheart.serving.client.received import take_deleted, take_memory, take_page, take_version
from byheart.serving.client.remote_memory import RemoteMemory, path_of
from byheart.serving.client.sending import Sender
from byheart.store.values import Deleted, Memory, Version, require_gone

KEY_VARIABLE = "BYHEART_API_KEY"


class Client:
    """The memories that a server keeps for the owner of a key; several threads may share it.

    Args:
        url: of the server, such as ``http://127.0.0.1:8321``.
        api_key: as ``byheart serve`` shows it; $BYHEART_API_KEY without it.
        timeout: seconds without a byte of an answer after which a request is given up.
        retries: how often a request is sent again where the server is busy or cannot be reached. What may not be done
            twice is sent again only if nothing of it was done; writes have a key by which the server does each once.

    Every call raises the library's errors for what the server says: MissingError, ConflictError, QuotaError, BusyError,
    InputError, UsageError, StateError, and UnavailableError where there is no answer.
    """

    def __init__(self, url: str, api_key: str | None = None, *, timeout: float = 600.0, retries: int = 3) -> None:
        key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
        self.sender = Sender(url, key.strip(), timeout=timeout, retries=retries)

    @property
    def url(self) -> str:
        """The server's address."""
        return self.sender.url

    def memory(
        self, name: str, *, model: str | None = None, method: str | None = None, subject: str = "", **options: Any
    ) -> RemoteMemory:
        """A memory by its name or id; nothing is asked of the server yet. The first write makes one that is missing.

        Args:
            model, method, options, subject: of a memory that is made, as for ``byheart.load``; ``model`` is a name that
                the server has. One that is there must have been made with them.

        Raises StoreError for what cannot be a name.
        """
        return RemoteMemory(self, name, model=model, method=method, subject=subject, options=options)

    def memories(self) -> Iterator[Memory]:
        """All memories, the newest first."""
        return (take_memory(fields) for fields in self.pages("/v1/memories"))

    def import_(self, name: str, path: str | Path, *, model: str | None = None, subject: str = "") -> Version:
        """A state file as a new memory, or as the newest version of one.

        Args:
            model: a name that the server has, where more than one of them fits the file.
            subject: whom a new memory is about.

        Raises StateError where the server's model cannot read the file, OSError where it is not there.
        """
        given = {"model": model, "subject": subject}
        params = {key: value for key, value in given.items() if value}
        where, file = f"{path_of(name)}/content", Path(os.path.expanduser(path))
        headers = {"content-type": "application/octet-stream"}
        sent = self.sender.retrying(lambda: self.sender.upload(where, file, params=params, headers=headers), safe=False)
        return take_version(sent)

    def forget(self, *, subject: str) -> Deleted:
        """Delete all memories about somebody for good, with their forks and versions; says how much that was.

        Raises StoreError where nobody can read them any more and some of their bytes are left.
        """
        gone = self.sender.call("DELETE", "/v1/memories", params={"subject": subject}, safe=True)
        return require_gone(take_deleted(gone))

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        """All of a list, of which the server gives a part at a time."""
        after: dict[str, Any] = {}
        while True:
            page = take_page(self.sender.call("GET", path, params={"limit": 100, **after}, safe=True))
            yield from page.data
            if not page.has_more:
                return
            after = {"after": page.last_id}

    def close(self) -> None:
        """Let go of the connections to the server."""
        self.sender.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
