"""Where the memories of a command are: in a folder here, or with a server. No command knows which."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from byheart.errors import UsageError

if TYPE_CHECKING:
    from byheart.serving.client.remote_store import RemoteEntry, RemoteStore
    from byheart.store.catalogue_store import CatalogueStore
    from byheart.store.folder import Entry
    from byheart.store.homes import AnyStore

    AnyEntry: TypeAlias = Entry | RemoteEntry

SERVER_VARIABLE = "BYHEART_SERVER"


def open_store(home: Path | None, server: str | None) -> AnyStore | RemoteStore:
    """The memories. Raises UsageError, StoreError."""
    from byheart.store import homes

    return find_server(home, server) or homes.open_store(home)


def open_versions(home: Path | None, server: str | None) -> CatalogueStore | RemoteStore:
    """The memories, each with its versions. Raises UsageError for a folder that keeps none."""
    from byheart.store import homes

    return find_server(home, server) or homes.require_catalogue(home)


def find_server(home: Path | None, server: str | None) -> RemoteStore | None:
    """The server that was named, if one was. Raises UsageError."""
    if home is not None and server is not None:
        raise UsageError("Give --home for memories here or --server for those of a server; one of the two.")
    # A folder that was typed comes before what the environment says.
    url = server or (None if home else os.environ.get(SERVER_VARIABLE))
    if not url:
        return None
    from byheart.serving.client.remote_store import RemoteStore

    return RemoteStore(url)
