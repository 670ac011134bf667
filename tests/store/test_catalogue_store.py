"""The command line's memories in a catalogue: the methods of a folder, and versions beside them."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from byheart import load
from byheart.errors import ConflictError, MissingError, StoreError, UnavailableError, UsageError
from byheart.session.session import Session
from byheart.store import catalogue
from byheart.store.catalogue_store import CatalogueStore
from byheart.store.folder import Store
from byheart.store.homes import CATALOGUE, migrate, open_store, require_catalogue
from tests.conftest import Run, tiny_tokenizer
from tests.samples import backbone


def _session() -> Session:
    return load(backbone(), method="window", encoder=tiny_tokenizer(), sinks=1, recent=7)


def _write(store: Store | CatalogueStore, name: str, session: Session, source: str) -> None:
    with store.updating(name, session):
        session.write("It is.", source=source)


def _write_while(store: CatalogueStore, name: str, session: Session, other: Callable[[], object]) -> None:
    with store.updating(name, session):
        session.write("It is.", source="late")
        other()


def _sources(store: CatalogueStore, name: str) -> list[str]:
    header = store.entry(name).header
    return [entry.source for entry in header.written] if header else []


@pytest.fixture
def store(tmp_path: Path) -> CatalogueStore:
    return CatalogueStore(tmp_path / "home")


def test_writers_join_what_was_saved_and_each_makes_a_version(store: CatalogueStore) -> None:
    one, two = _session(), _session()
    _write(store, "cat", one, "a")
    _write(store, "cat", two, "b")
    _write(store, "cat", one, "c")
    assert _sources(store, "cat") == ["a", "b", "c"]
    assert [version.entry["source"] for version in store.versions("cat")] == ["c", "b", "a"]
    with suppress(KeyError), store.updating("cat", one):
        one.write("It is.", source="d")
        raise KeyError
    assert [entry.source for entry in one.header.written] == _sources(store, "cat") == ["a", "b", "c"]
    store.mine.restore("cat", 1)
    _write(store, "cat", one, "e")
    assert _sources(store, "cat") == ["a", "e"]


def test_who_changes_a_memory_elsewhere_meanwhile_wins(store: CatalogueStore) -> None:
    session = _session()
    _write(store, "cat", session, "a")
    with pytest.raises(ConflictError, match="has version 2 now, not 1"):
        _write_while(store, "cat", session, lambda: store.mine.restore("cat", 1))
    assert [entry.source for entry in session.header.written] == ["a"]


def test_a_fork_is_a_row_and_forgetting_leaves_it(store: CatalogueStore) -> None:
    session = _session()
    _write(store, "cat", session, "a")
    assert store.fork("cat", "twin").path == store.entry("cat").path
    store.forget("cat")
    assert store.names() == ["twin"]
    with pytest.raises(
        MissingError, match=r"There is no memory 'twit'. Did you mean 'twin'\? `byheart list` shows all"
    ):
        store.existing("twit")
    with pytest.raises(StoreError, match="was forgotten while it was in use"):
        _write(store, "cat", session, "b")


def test_a_damaged_memory_hides_no_other(store: CatalogueStore) -> None:
    _write(store, "cat", _session(), "a")
    _write(store, "dog", _session(), "a")
    store.mine.create("new", model="tiny")
    store.existing("cat").write_bytes(b"no state")
    found = {entry.name: entry.problem for entry in store.entries()}
    assert found.keys() == {"cat", "dog"}
    assert "is not a whole safetensors file" in found["cat"]


def test_a_folder_of_files_is_taken_over(tmp_path: Path) -> None:
    folder = Store(tmp_path)
    for name in ("cat", "dog", "bad", "link"):
        _write(folder, name, _session(), "a")
    folder.path("bad").write_bytes(b"no state")
    folder.path("link").rename(tmp_path / "elsewhere")
    folder.path("link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="`byheart migrate` takes them over"):
        require_catalogue(tmp_path)
    whole = folder.path("cat").read_bytes()
    assert isinstance(open_store(tmp_path), Store)
    problems = {memory.name: memory.problem for memory in migrate(tmp_path)}
    assert (problems["cat"], problems["dog"]) == ("", "")
    assert "not a whole safetensors file" in problems["bad"]
    assert "it is a link to" in problems["link"]
    store = open_store(tmp_path)
    assert isinstance(store, CatalogueStore)
    assert store.names() == ["cat", "dog"]
    assert (store.existing("cat").read_bytes(), folder.names()) == (whole, ["bad", "link"])
    # As where it was ended before the file was removed; and a file that is another memory.
    folder.path("cat").write_bytes(whole)
    _write(folder, "dog", _session(), "other")
    problems = {memory.name: memory.problem for memory in migrate(tmp_path)}
    assert problems["cat"] == ""
    assert "another memory of this name" in problems["dog"]
    assert [version.operation for version in store.versions("cat")] == ["import"]
    assert folder.names() == ["bad", "dog", "link"]


def test_a_memory_that_goes_while_all_are_listed_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CatalogueStore(tmp_path)
    for name in ("cat", "dog"):
        _write(store, name, _session(), name)
    existing = CatalogueStore.existing

    def going(self: CatalogueStore, name: str) -> Path:
        path = existing(self, name)
        if name == "cat":
            self.forget(name)
        return path

    monkeypatch.setattr(CatalogueStore, "existing", going)
    assert [entry.name for entry in store.entries()] == ["dog"]


def test_many_who_want_the_catalogue_purged_wait_for_one_and_hear_of_its_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "BUSY_SECONDS", 0.5)
    store = CatalogueStore(tmp_path)
    _write(store, "cat", _session(), "a")
    with ThreadPoolExecutor(8) as pool:
        with closing(sqlite3.connect(tmp_path / CATALOGUE)) as reader:
            # A snapshot, as a back-up takes one.
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM memories").fetchone()
            start = time.monotonic()
            purges = [pool.submit(store.memories.catalogue.purge) for _ in range(8)]
            for purge in purges:
                with pytest.raises(UnavailableError, match="could not be emptied"):
                    purge.result()
            assert time.monotonic() - start < 3
        for purge in [pool.submit(store.memories.catalogue.purge) for _ in range(8)]:
            purge.result()


def test_commands_work_on_a_catalogue(tmp_path: Path, run: Run) -> None:
    home = ("--home", str(tmp_path))
    folder = Store(tmp_path)
    _write(folder, "cat", _session(), "a")
    assert "Memories taken over: 1." in run("migrate", *home).out
    store = require_catalogue(tmp_path)
    _write(store, "cat", _session(), "b")
    newest, first = json.loads(run("versions", "cat", *home, "--json").out)
    assert (newest["number"], first["number"]) == (2, 1)
    assert "import" in run("versions", "cat", *home).out
    assert "is as it was in version 1; that is version 3 now" in run("restore", "cat", "1", *home).out
    assert json.loads(run("show", "cat", *home, "--json").out)["tokens"] == first["tokens"]
    assert "twin" in run("fork", "cat", "twin", *home).out
    assert [memory["name"] for memory in json.loads(run("list", *home, "--json").out)] == ["cat", "twin"]
    store.mine.create("of-ann", model="tiny", subject="ann")
    assert json.loads(run("forget", "--subject", "ann", "--yes", *home, "--json").out)["memories"] == 1
    assert run("forget", "cat", "--yes", *home).code == 0
    assert "Deleted 0 expired memories" in run("gc", *home).out
    assert store.names() == ["twin"]
    assert (tmp_path / CATALOGUE).exists()
