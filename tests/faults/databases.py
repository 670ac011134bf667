"""Catalogues for servers that are attacked: a file of SQLite, or a PostgreSQL that this process has started."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random

from byheart.model.backbone import Backbone
from tests.faults.attack import Try
from tests.serving.processes import open_tiny
from tests.store.postgres import Postgres, find_binaries, started

Catalogues = Callable[[Path], str]
"""A folder -> the address of a new catalogue."""


def sqlite() -> Catalogues:
    """Each in a file of its folder."""
    return lambda home: f"sqlite:///{home / 'byheart.sqlite3'}"


def postgres() -> Catalogues:
    """Each a database of the server of this process. Raises FileNotFoundError where there is none to start."""
    if find_binaries() is None:
        raise FileNotFoundError("PostgreSQL is not installed (Debian: apt install postgresql)")
    server = start_postgres()
    return lambda home: server.new_database()


@cache
def start_postgres() -> Postgres:
    """A server that ends with this process; those that are forked from it use it too."""
    running = contextmanager(started)()
    atexit.register(running.__exit__, None, None, None)
    return running.__enter__()


def tries(
    catalogues: Callable[[], Catalogues], attempt: Callable[[Backbone, str, Path, Random], list[str]]
) -> Callable[[Path], Try]:
    """What prepares tries that need a model and a catalogue each; where none can be made, that is what they find.

    Args:
        attempt: a try, given the model, the address of a catalogue, a folder and what is random.
    """

    def prepare(folder: Path) -> Try:
        try:
            new_catalogue = catalogues()
        except FileNotFoundError as error:
            missing = [str(error)]
            return lambda number, random: missing
        backbone = open_tiny(folder / "model")

        def tried(number: int, random: Random) -> list[str]:
            home = folder / f"home{number}"
            home.mkdir()
            return attempt(backbone, new_catalogue(home), home, random)

        return tried

    return prepare


KINDS: dict[str, Callable[[], Catalogues]] = {"sqlite": sqlite, "postgres": postgres}
