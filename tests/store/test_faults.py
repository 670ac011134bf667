"""Nothing acknowledged is lost, and nothing forgotten is left, whatever fails: kills, full disks, databases that go."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError
from sqlalchemy import Connection, text

from byheart.errors import ConflictError, CorruptStateError, StoreError, UnavailableError, UsageError
from byheart.protocol.state import Header
from byheart.store import catalogue
from byheart.store.catalogue import Catalogue
from byheart.store.memories import Memories, TenantMemories
from tests.faults.store import kill_committers
from tests.store.postgres import Postgres
from tests.store.states import commit, make_state

SECRET = "hidden-2718281828"


@pytest.fixture
def memories(tmp_path: Path) -> Iterator[Memories]:
    found = Memories.at(tmp_path / "home")
    yield found
    found.close()


@pytest.fixture
def mine(memories: Memories) -> TenantMemories:
    return memories.of("local")


def _files_with(folder: Path, secret: str) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_what_is_erased_is_in_no_file(memories: Memories, mine: TenantMemories, tmp_path: Path) -> None:
    """Enough memories that SQLite has split pages, and moved what stood there."""
    for n in range(30):
        subject = "ann" if n % 2 else "bob"
        mark = SECRET if n % 2 else "kept"
        mine.create(f"{mark}-{n}", model="tiny", subject=subject, metadata={"about": f"{mark} " * 20})
        if n % 10 < 2:
            commit(mine, f"{mark}-{n}", tmp_path, f"{mark}-{n}", idempotency_key=f"{mark}-{n}")
    mine.fork(f"{SECRET}-1", f"{SECRET}-fork")
    mine.update(f"{SECRET}-1", name=f"{SECRET}-renamed")
    # As a writer leaves it that was killed before it committed.
    orphan = mine.fetch(mine.version(f"{SECRET}-fork")).with_name(f"{0:062}.safetensors")
    make_state(tmp_path, SECRET).path.rename(orphan)
    assert _files_with(tmp_path / "home", SECRET)
    gone = mine.erase("ann")
    assert (gone.memories, gone.versions, gone.pending) == (16, 4, 0)
    assert len(gone.keys) == 4  # three objects of versions, and what the killed writer left
    assert _files_with(tmp_path / "home", SECRET) == []
    assert len(mine.list(limit=100).data) == 15
    assert mine.fetch(mine.version("kept-0")).is_file()
    assert mine.audit().data[0].counts == {"memories": 16, "versions": 4}
    with pytest.raises(StoreError, match="the subject is empty"):
        mine.erase("")


def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    assert kill_committers(tmp_path, 20, f"sqlite:///{tmp_path}/catalogue.sqlite3") == []


@pytest.mark.slow
def test_killed_writers_lose_nothing_in_postgres(tmp_path: Path, postgres: Postgres) -> None:
    assert kill_committers(tmp_path, 20, postgres.new_database()) == []


def test_who_dies_leaves_nothing_after_a_sweep(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        other = Memories.at(tmp_path / "home")
        make_state(other.scratch, "a")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    memories = Memories.at(tmp_path / "home")
    mine = make_state(memories.scratch, "mine")
    assert memories.sweep().files == 1
    assert mine.path.exists()
    memories.close()
    assert not mine.path.exists()


def _write_until_done(mine: TenantMemories, folder: Path, writer: str) -> None:
    """Five texts, each tried again until nobody else was faster."""
    (folder / writer).mkdir()
    for n in range(5):
        while True:
            version = mine.get("cat").version
            with suppress(ConflictError):
                commit(mine, "cat", folder / writer, f"{writer}{n}", expected=version)
                break


def test_two_processes_write_one_memory(tmp_path: Path) -> None:
    """One of them from two threads; none overwrites what another wrote."""
    memories = Memories.at(tmp_path / "home")
    memories.of("local").create("cat", model="tiny")
    # No connection of SQLite may be taken along into another process.
    memories.close()
    child = os.fork()
    if child == 0:
        try:
            _write_until_done(Memories.at(tmp_path / "home").of("local"), tmp_path, "a")
            os._exit(0)
        finally:
            os._exit(1)
    memories = Memories.at(tmp_path / "home")
    mine = memories.of("local")
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda writer: _write_until_done(mine, tmp_path, writer), "bc"))
    assert os.waitpid(child, 0)[1] == 0
    found = mine.versions("cat", limit=100).data
    assert [version.number for version in found] == list(range(15, 0, -1))
    assert {version.entry["source"] for version in found} == {f"{writer}{n}" for writer in "abc" for n in range(5)}
    memories.close()


def test_a_commit_whose_answer_is_lost_is_found_again(
    memories: Memories, mine: TenantMemories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.create("cat", model="tiny")
    writing = memories.catalogue.writing

    @contextmanager
    def lose_answer() -> Iterator[Connection]:
        monkeypatch.undo()
        with writing() as connection:
            yield connection
        raise UnavailableError("the connection was lost")

    monkeypatch.setattr(memories.catalogue, "writing", lose_answer)
    assert commit(mine, "cat", tmp_path, "a", expected=0) == mine.version("cat", 1)
    assert list(tmp_path.glob("*.safetensors")) == []


def test_an_object_that_goes_while_an_equal_one_is_committed_is_stored_again(
    memories: Memories, mine: TenantMemories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.create("cat", model="tiny")
    mine.create("dog", model="tiny")
    commit(mine, "dog", tmp_path, "a")
    put = memories.objects.put

    def put_then_lose(key: str, file: Path) -> None:
        put(key, file)
        monkeypatch.undo()
        mine.delete("dog")

    monkeypatch.setattr(memories.objects, "put", put_then_lose)
    made = commit(mine, "cat", tmp_path, "a")
    assert mine.fetch(made).stat().st_size == made.bytes


@pytest.mark.parametrize("moment", ["insert_version", "refer", "record"])
def test_a_commit_that_fails_leaves_no_bytes(
    moment: str, memories: Memories, mine: TenantMemories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.create("cat", model="tiny")
    before = commit(mine, "cat", tmp_path, "a")

    def fail(*_: Any, **__: Any) -> None:
        monkeypatch.undo()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"byheart.store.rows.{moment}", fail)
    with pytest.raises(OSError, match="No space left"):
        commit(mine, "cat", tmp_path, "b")
    assert mine.version("cat") == before
    assert len(list(memories.objects.stored())) == 1
    assert commit(mine, "cat", tmp_path, "b").number == 2


def test_a_full_disk_is_said_and_recovered_from(mine: TenantMemories, tmp_path: Path) -> None:
    mine.create("cat", model="tiny")
    before = commit(mine, "cat", tmp_path, "a")
    state = make_state(tmp_path, "b")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(UnavailableError, match="cannot be used now"):
            mine.commit("cat", state.path, sha256=state.sha256, header=state.header, operation="write", entry={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert mine.version("cat") == before
    assert commit(mine, "cat", tmp_path, "b").number == 2


def test_a_catalogue_that_is_busy_or_broken_is_said(
    memories: Memories, mine: TenantMemories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.create("cat", model="tiny")
    monkeypatch.setattr(catalogue, "BUSY_SECONDS", 0.1)
    other = Memories.at(tmp_path / "home")
    holder = sqlite3.connect(tmp_path / "home" / "byheart.sqlite3", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="database is locked"):
        other.of("local").create("dog", model="tiny")
    assert other.of("local").get("cat").name == "cat"
    holder.execute("ROLLBACK")
    assert other.of("local").create("dog", model="tiny").name == "dog"
    holder.execute("UPDATE byheart SET schema = 99")
    holder.close()
    other.close()
    with pytest.raises(StoreError, match="has schema 99, which a later byheart has made"):
        Memories.at(tmp_path / "home")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "byheart.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(UnavailableError, match="file is not a database"):
        Memories.at(tmp_path / "broken")


def test_a_bucket_that_does_not_answer_is_said_and_recovered_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories = Memories(f"sqlite:///{tmp_path}/c.sqlite3", "memory:///", cache=tmp_path / "cache")
    mine = memories.of("ours")
    mine.create("cat", model="tiny")

    def fail(*_: Any, **__: Any) -> None:
        raise GenericError("timed out")

    for call in ("put", "head", "delete"):
        monkeypatch.setattr(obstore, call, fail)
    with pytest.raises(UnavailableError, match=r"The bucket .* cannot be used now: timed out"):
        commit(mine, "cat", tmp_path, "a")
    with pytest.raises(UnavailableError, match="timed out"):
        memories.check()
    monkeypatch.undo()
    memories.check()
    made = commit(mine, "cat", tmp_path, "a")
    monkeypatch.setattr(obstore, "get", fail)
    with pytest.raises(UnavailableError, match="timed out"):
        mine.fetch(made)
    monkeypatch.undo()
    copy = mine.fetch(made)
    assert memories.sweep().files == 0
    memories.cache_bytes = made.bytes - 1
    assert memories.sweep().files == 1
    assert not copy.exists()
    assert mine.fetch(made) == copy
    monkeypatch.setattr(obstore, "delete", fail)
    assert mine.delete("cat").pending == 1
    monkeypatch.undo()
    assert memories.sweep().keys == (made.key,)
    assert not copy.exists()
    memories.close()


def test_bytes_that_changed_in_a_bucket_are_not_read(tmp_path: Path) -> None:
    memories = Memories(f"sqlite:///{tmp_path}/c.sqlite3", "memory:///", cache=tmp_path / "cache")
    mine = memories.of("ours")
    mine.create("cat", model="tiny")
    made = commit(mine, "cat", tmp_path, "a")
    ((key, _),) = memories.objects.stored()
    bucket: Any = memories.objects
    obstore.put(bucket.bucket, key, b"something else")
    with pytest.raises(CorruptStateError, match="is not what was stored there"):
        mine.fetch(made)
    obstore.delete(bucket.bucket, key)
    with pytest.raises(CorruptStateError, match="has lost its file"):
        mine.fetch(made)
    memories.close()


@pytest.mark.parametrize("address", ["", "mysql://x", "sqlite://", "sqlite:///:memory:", "nonsense"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UsageError, match="The catalogue's address"):
        Catalogue(address)


def test_objects_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Objects cannot be kept there"):
        Memories(f"sqlite:///{tmp_path}/c", "nonsense://x")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="which is a file; give a folder"):
        Memories(f"sqlite:///{tmp_path}/c", str(tmp_path / "file"))


def test_a_state_must_say_its_hash(mine: TenantMemories, tmp_path: Path) -> None:
    mine.create("cat", model="tiny")
    header = Header("window", {}, "b", "t", "a", "tiny")
    with pytest.raises(StoreError, match="is no SHA-256"):
        mine.commit("cat", tmp_path, sha256="../../x", header=header, operation="write", entry={})
    assert mine.replay("never") is None


def _restart_while_writing(memories: Memories, postgres: Postgres) -> None:
    with memories.catalogue.writing() as connection:
        connection.execute(text("CREATE TABLE unfinished (number integer)"))
        postgres.stop()
        postgres.start()


@pytest.mark.slow
def test_postgres_restarted(postgres: Postgres, tmp_path: Path) -> None:
    """Connections that were open are made anew; while it is away that is said; what was acknowledged is there."""
    memories = Memories(postgres.new_database(), str(tmp_path / "objects"))
    mine = memories.of("ours")
    mine.create("cat", model="tiny")
    commit(mine, "cat", tmp_path, "a")
    for n in range(2, 5):
        postgres.stop()
        with pytest.raises(UnavailableError, match="catalogue of memories cannot be used now"):
            commit(mine, "cat", tmp_path, f"b{n}")
        with pytest.raises(UnavailableError):
            memories.check()
        postgres.start()
        assert mine.get("cat").version == n - 1
        assert commit(mine, "cat", tmp_path, f"b{n}").number == n
    with pytest.raises(UnavailableError):
        _restart_while_writing(memories, postgres)
    assert mine.get("cat").version == 4
    memories.close()
