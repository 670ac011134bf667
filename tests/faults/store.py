"""Writers into a catalogue that are killed, in SQLite and in PostgreSQL."""

from __future__ import annotations

import hashlib
import itertools
import os
import select
import time
from pathlib import Path
from random import Random

from byheart.store import clock
from byheart.store.memories import Memories
from tests.faults.attack import Attack, Try
from tests.faults.crash import beside
from tests.faults.databases import postgres
from tests.store.states import commit

_KILLS = 50


def kill_in_sqlite(folder: Path) -> Try:
    """The try for a catalogue in SQLite."""

    def attempt(number: int, random: Random) -> list[str]:
        place = folder / f"home{number}"
        return kill_committers(place, _KILLS, f"sqlite:///{place}/catalogue.sqlite3", random)

    return attempt


def kill_in_postgres(folder: Path) -> Try:
    """The try for a catalogue in PostgreSQL, which must be installed."""
    try:
        new_catalogue = postgres()
    except FileNotFoundError as error:
        missing = [str(error)]
        return lambda number, random: missing

    def attempt(number: int, random: Random) -> list[str]:
        return kill_committers(folder / f"home{number}", _KILLS, new_catalogue(folder), random)

    return attempt


def kill_committers(folder: Path, kills: int, catalogue: str, random: Random | None = None) -> list[str]:
    """What was acknowledged is a version whose bytes are whole; a sweep leaves those bytes and no others."""
    random = random or Random(0)
    folder.mkdir(exist_ok=True)
    where = (catalogue, str(folder / "objects"))
    memories = Memories(*where)
    memories.of("ours").create("m", model="tiny")
    memories.close()
    acknowledged, problems = set[str](), list[str]()
    for kill in range(kills):
        acknowledged |= _killed(where, folder, kill, random.uniform(0.0, 0.1))
        problems += _check(where, acknowledged)
    memories = Memories(*where, clock=lambda: clock.now() + 7_200_000)
    commit(memories.of("ours"), "m", folder, "last")
    memories.sweep()
    stored = len(list((folder / "objects").rglob("*.safetensors")))
    memories.close()
    known = len(_sources(where)[0])
    problems += [] if acknowledged else ["nothing was written"]
    return problems + ([] if stored == known else [f"{stored} files were left of {known} versions"])


def _killed(where: tuple[str, str], folder: Path, kill: int, seconds: float) -> set[str]:
    """What a writer acknowledged until it was killed, most often while it commits."""
    acknowledged, pipe = os.pipe()
    counter = itertools.count()
    opened: list[Memories] = []

    def write() -> None:
        if not opened:
            opened.append(Memories(*where))
        source = f"{kill}-{next(counter)}"
        commit(opened[0].of("ours"), "m", folder, source)
        os.write(pipe, f"{source}\n".encode())

    with beside(write):
        if kill % 5:
            # However slow the machine is, it has begun. Every fifth one is killed while it opens the catalogue.
            select.select([acknowledged], [], [], 30)
        time.sleep(seconds)
    os.close(pipe)
    with os.fdopen(acknowledged) as lines:
        return set(lines.read().split())


def _check(where: tuple[str, str], acknowledged: set[str]) -> list[str]:
    found, problems = _sources(where)
    return problems + [f"'{source}' was lost" for source in acknowledged if source not in found]


def _sources(where: tuple[str, str]) -> tuple[list[str], list[str]]:
    """What each version's writer called it, and what is wrong with one; the newest 100 are looked at whole."""
    memories = Memories(*where)
    mine, found, problems = memories.of("ours"), list[str](), list[str]()
    after: int | None = None
    while True:
        page = mine.versions("m", limit=100, after=after)
        for version in page.data:
            found.append(str(version.entry["source"]))
            if after is None and hashlib.sha256(mine.fetch(version).read_bytes()).hexdigest() != version.sha256:
                problems.append(f"version {version.number} is not whole")
        if not page.has_more:
            break
        after = page.data[-1].number
    numbers = mine.get("m").version
    memories.close()
    return found, problems + ([] if numbers == len(found) else [f"{numbers} versions, of which {len(found)} are there"])


_WHAT = "writers into {} killed: versions lost, bytes not whole, files left"
ATTACKS = (
    Attack("store.sqlite", _WHAT.format("SQLite"), kill_in_sqlite, 1000, batch=_KILLS, seconds=300),
    Attack("store.postgres", _WHAT.format("PostgreSQL"), kill_in_postgres, 1000, batch=_KILLS, seconds=300),
)
