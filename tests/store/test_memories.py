"""What a store of memories promises, whatever database and objects it has."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import inspect, text, update

from byheart.errors import ConflictError, MissingError, QuotaError, StoreError
from byheart.store import schema
from byheart.store.checks import require_name
from byheart.store.memories import Memories, TenantMemories
from byheart.store.objects import object_prefix
from byheart.store.values import Expiry, Parent, Quota
from tests.store.states import commit, make_state

_HOUR = 3_600_000


class Ticks:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture(scope="module")
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture(scope="module", params=["folder", "bucket", pytest.param("postgres", marks=pytest.mark.slow)])
def memories(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ticks: Ticks
) -> Iterator[Memories]:
    folder = tmp_path_factory.mktemp("store")
    objects = "memory:///" if request.param == "bucket" else str(folder / "objects")
    catalogue = f"sqlite:///{folder}/catalogue.sqlite3"
    if request.param == "postgres":
        catalogue = request.getfixturevalue("postgres").new_database()
    found = Memories(catalogue, objects, cache=folder / "cache", clock=ticks)
    yield found
    found.close()


@pytest.fixture
def mine(memories: Memories, request: pytest.FixtureRequest) -> TenantMemories:
    """Those of a tenant whom no other test has."""
    return memories.of(request.node.name)


def test_a_new_memory_has_nothing_written(mine: TenantMemories) -> None:
    made = mine.create(
        "cat", model="tiny", method="window", options={"recent": 7}, metadata={"of": "us"}, subject="ann"
    )
    assert made == mine.get("cat") == mine.get(made.id)
    assert (made.name, made.version, made.bytes, made.sha256, made.options) == ("cat", 0, 0, "", {"recent": 7})
    with pytest.raises(MissingError, match="Nothing has been written into memory 'cat' yet"):
        mine.version("cat")
    with pytest.raises(ConflictError, match="There is a memory 'cat' already"):
        mine.create("cat", model="tiny")
    assert mine.create(None, model="tiny").name is None


def test_a_write_is_a_version_and_the_file_moves_in(mine: TenantMemories, tmp_path: Path) -> None:
    mine.create("cat", model="tiny")
    file = make_state(tmp_path, "a")
    whole = file.path.read_bytes()
    made = commit(mine, "cat", tmp_path, "a", expected=0)
    assert not file.path.exists()
    assert mine.fetch(made).read_bytes() == whole
    assert (made.number, made.bytes, made.key, made.entry) == (
        1,
        len(whole),
        f"{mine.tenant}:{file.sha256}",
        {"source": "a"},
    )
    memory = mine.get("cat")
    assert (memory.version, memory.method, memory.options) == (1, "window", {"recent": 7})
    assert (memory.sha256, memory.slots, memory.tokens, memory.characters) == (file.sha256, 1, 5, 20)


def test_of_two_writes_on_one_version_one_is_refused_and_keeps_its_file(mine: TenantMemories, tmp_path: Path) -> None:
    mine.create("cat", model="tiny")
    commit(mine, "cat", tmp_path, "a", expected=0)
    with pytest.raises(ConflictError, match="has version 1 now, not 0"):
        commit(mine, "cat", tmp_path, "b", expected=0)
    assert make_state(tmp_path, "b").path.exists()
    assert mine.get("cat").tokens == 5


def test_an_idempotency_key_writes_once(mine: TenantMemories, tmp_path: Path, memories: Memories, ticks: Ticks) -> None:
    mine.create("cat", model="tiny")
    first = commit(mine, "cat", tmp_path, "a", expected=0, idempotency_key="k")
    assert commit(mine, "cat", tmp_path, "a", "b", expected=0, idempotency_key="k") == first == mine.replay("k")
    assert mine.get("cat").version == 1
    mine.create("dog", model="tiny")
    with pytest.raises(ConflictError, match="idempotency key was used for another memory"):
        commit(mine, "dog", tmp_path, "a", idempotency_key="k")
    ticks.now += 25 * _HOUR
    memories.sweep()
    assert mine.replay("k") is None


def test_versions_are_restored_and_deleted(mine: TenantMemories, tmp_path: Path) -> None:
    mine.create("cat", model="tiny")
    one, two = (commit(mine, "cat", tmp_path, *"ab"[:count]) for count in (1, 2))
    three = mine.restore("cat", 1)
    assert (three.number, three.sha256, three.operation) == (3, one.sha256, "restore")
    assert [version.number for version in mine.versions("cat").data] == [3, 2, 1]
    page = mine.versions("cat", limit=1, after=3)
    assert [version.number for version in page.data] == [2]
    assert page.has_more
    with pytest.raises(ConflictError, match="Version 3 is what the memory is now"):
        mine.delete_version("cat", 3)
    assert mine.delete_version("cat", 1).keys == ()  # version 3 has its object
    gone = mine.delete_version("cat", 2)
    assert (gone.versions, gone.bytes, gone.keys) == (1, two.bytes, (two.key,))
    with pytest.raises(MissingError, match="has no version 2; its newest is 3"):
        mine.fetch(two)
    assert mine.usage().bytes == one.bytes


def test_a_request_whose_version_was_deleted_writes_again(mine: TenantMemories, tmp_path: Path) -> None:
    mine.create("cat", model="tiny")
    commit(mine, "cat", tmp_path, "a", idempotency_key="k")
    commit(mine, "cat", tmp_path, "a", "b")
    mine.delete_version("cat", 1)
    assert mine.replay("k") is None
    assert commit(mine, "cat", tmp_path, "a", "c", idempotency_key="k").number == 3


def test_only_what_nobody_has_written_since_is_deleted(mine: TenantMemories, tmp_path: Path) -> None:
    mine.create("cat", model="tiny")
    commit(mine, "cat", tmp_path, "a")
    with pytest.raises(ConflictError, match="has version 1 now, not 0"):
        mine.delete("cat", expected=0)
    assert mine.get("cat").version == 1
    assert mine.delete("cat", expected=1).memories == 1


def test_a_fork_shares_bytes_and_outlives_its_parent(mine: TenantMemories, tmp_path: Path) -> None:
    made = mine.create("cat", model="tiny", subject="ann", metadata={"a": "b"}, expires_after=Expiry(60))
    one = commit(mine, "cat", tmp_path, "a")
    commit(mine, "cat", tmp_path, "a", "b")
    fork = mine.fork("cat", "twin", version=1)
    assert (fork.version, fork.sha256, fork.subject, fork.metadata) == (1, one.sha256, "ann", {"a": "b"})
    assert (fork.parent, fork.expires_after) == (Parent(made.id, 1), Expiry(60))
    assert mine.delete("cat").versions == 2
    assert mine.fetch(mine.version("twin")).is_file()
    with pytest.raises(ConflictError, match="There is a memory 'twin' already"):
        mine.fork("twin", "twin")
    assert mine.fork(mine.create("new", model="tiny").id, None).version == 0


def test_a_deleted_memory_leaves_no_bytes(mine: TenantMemories, tmp_path: Path, memories: Memories) -> None:
    mine.create("cat", model="tiny")
    made = commit(mine, "cat", tmp_path, "a")
    gone = mine.delete("cat")
    assert (gone.memories, gone.versions, gone.bytes, gone.keys, gone.pending) == (1, 1, made.bytes, (made.key,), 0)
    with pytest.raises(MissingError, match="There is no memory 'cat'"):
        mine.get("cat")
    assert mine.usage().bytes == 0
    assert not list(memories.objects.stored(object_prefix(mine.tenant)))
    assert mine.create("cat", model="tiny").version == 0


def test_another_process_learns_which_states_are_gone(mine: TenantMemories, tmp_path: Path, memories: Memories) -> None:
    for name in ("cat", "hen"):
        mine.create(name, model="tiny")
    cat, hen = (commit(mine, name, tmp_path, name) for name in ("cat", "hen"))
    assert memories.gone([cat.key, hen.key]) == []
    mine.delete("cat")
    assert memories.gone([cat.key, hen.key, f"no:{'0' * 64}"]) == [cat.key, f"no:{'0' * 64}"]


def test_tenants_see_and_share_nothing(memories: Memories, mine: TenantMemories, tmp_path: Path) -> None:
    theirs = memories.of("theirs")
    made = mine.create("cat", model="tiny")
    theirs.create("cat", model="tiny")
    ours = commit(mine, "cat", tmp_path, "a")
    other = commit(theirs, "cat", tmp_path, "a")
    assert ours.key != other.key
    assert mine.fetch(ours) != theirs.fetch(other)
    for call in (theirs.get, theirs.delete, theirs.versions):
        with pytest.raises(MissingError):
            call(made.id)
    mine.delete("cat")
    assert theirs.fetch(other).is_file()
    assert [entry.action for entry in theirs.audit().data] == ["write", "create"]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_list_goes_on_after_a_memory_that_is_gone(mine: TenantMemories, order: Literal["asc", "desc"]) -> None:
    names = [f"m{n}" for n in range(7)]
    for name in names:
        mine.create(name, model="tiny")
    mine.update("m0", metadata={"is": "newest in the audit trail"})
    seen, after = [], None
    while (page := mine.list(limit=2, order=order, after=after)).data:
        seen += [memory.name for memory in page.data]
        for memory in page.data:
            mine.delete(memory.id)
        if after is None:
            mine.create("later", model="tiny")
        after = page.data[-1].id
    assert seen == ([*names, "later"] if order == "asc" else names[::-1])


def test_a_list_goes_on_where_two_were_made_at_once(memories: Memories, mine: TenantMemories) -> None:
    """In PostgreSQL, the trail may then have them in the other order."""
    zero, one, two = (mine.create(f"m{n}", model="tiny") for n in range(3))
    entries, numbers = schema.audit.c, {entry.memory_id: entry.number for entry in mine.audit().data}
    with memories.catalogue.writing() as connection:
        for memory, number in ((one, -1), (two, numbers[one.id]), (one, numbers[two.id])):
            connection.execute(update(schema.audit).where(entries.memory_id == memory.id).values(sequence=number))
    mine.delete(one.id)
    assert [memory.id for memory in mine.list(order="asc", after=one.id).data] == [two.id]
    assert [memory.id for memory in mine.list(order="desc", after=two.id).data] == [zero.id]


def test_a_memory_whose_place_an_earlier_byheart_has_not_noted_is_missing(
    memories: Memories, mine: TenantMemories
) -> None:
    made = mine.create("cat", model="tiny")
    assert not mine.audit().data[0].counts
    with memories.catalogue.writing() as connection:
        connection.execute(update(schema.audit).where(schema.audit.c.memory_id == made.id).values(counts={}))
    mine.delete("cat")
    with pytest.raises(MissingError):
        mine.list(after=made.id)


def test_a_catalogue_of_an_earlier_byheart_gets_the_indexes_that_it_lacks(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(Memories.at(tmp_path)) as found, found.catalogue.writing() as connection:
            indexes = inspect(connection).get_indexes("audit")
            assert "audit_of_memory" in {index["name"] for index in indexes}
            connection.execute(text("DROP INDEX audit_of_memory"))


def test_a_list_does_not_go_on_after_what_was_never_there(memories: Memories, mine: TenantMemories) -> None:
    theirs = memories.of("other").create("cat", model="tiny")
    memories.of("other").delete("cat")
    mine.create("dog", model="tiny")
    mine.delete("dog")
    for after in (theirs.id, "dog", "mem_" + "x" * 24):
        with pytest.raises(MissingError):
            mine.list(after=after)


def test_lists_are_paged_and_filtered(mine: TenantMemories) -> None:
    made = [mine.create(f"m{n}", model="tiny", metadata={"n": f"{n % 2}"}, subject=f"s{n}") for n in range(5)]
    assert [memory.name for memory in mine.list(limit=2).data] == ["m4", "m3"]
    page = mine.list(limit=2, after=made[3].id)
    assert [memory.name for memory in page.data] == ["m2", "m1"]
    assert page.has_more
    assert not mine.list(limit=2, order="asc", after="m2").has_more
    assert [memory.name for memory in mine.list(metadata={"n": "1"}).data] == ["m3", "m1"]
    assert [memory.name for memory in mine.list(subject="s2").data] == ["m2"]
    assert [memory.name for memory in mine.list(name="m0").data] == ["m0"]
    with pytest.raises(StoreError, match="limit is 1 to 100; it is 0"):
        mine.list(limit=0)


def test_a_model_is_called_as_this_process_calls_it(
    memories: Memories, mine: TenantMemories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands name a model by its folder; a server has a name for it."""
    made = [mine.create(f"m{number}", model=model) for number, model in enumerate(("/models/a", "b"))]
    monkeypatch.setattr(memories, "models", {"/models/a": "a"})
    here = memories.of(mine.tenant)
    assert [here.get(own.id).model for own in made] == ["a", "b"]
    assert sorted(memory.model for memory in here.list().data) == ["a", "b"]
    assert mine.get("m0").model == "/models/a"


def test_what_is_told_can_be_changed(mine: TenantMemories) -> None:
    mine.create("cat", model="tiny", metadata={"a": "b"})
    mine.create("dog", model="tiny")
    changed = mine.update("cat", name="kitten", metadata={})
    assert changed == mine.get("kitten")
    assert changed.metadata == {}
    with pytest.raises(ConflictError, match="There is a memory 'dog' already"):
        mine.update("kitten", name="dog")
    assert mine.update("kitten", expires_after=Expiry(60, "created_at")).expires_at is not None
    assert mine.update("kitten", expires_after=None).expires_at is None


def test_memories_expire(mine: TenantMemories, memories: Memories, ticks: Ticks, tmp_path: Path) -> None:
    mine.create("cat", model="tiny", expires_after=Expiry(100))
    made = commit(mine, "cat", tmp_path, "a")
    mine.create("dog", model="tiny", expires_after=Expiry(100, "created_at"))
    ticks.now += 90_000
    for name in ("cat", "dog"):
        mine.touch(mine.get(name).id)
    ticks.now += 20_000
    assert mine.get("cat").version == 1
    with pytest.raises(MissingError):
        mine.get("dog")
    mine.create("bat", model="tiny", expires_after=Expiry(1, "created_at"))
    ticks.now += 2_000
    assert mine.update("cat", name="bat").name == "bat"
    assert mine.create("dog", model="tiny").version == 0
    with pytest.raises(StoreError, match="would have expired by now"):
        mine.update("bat", expires_after=Expiry(1, "created_at"))
    ticks.now += 100_000
    swept = memories.sweep()
    assert swept.memories >= 1
    assert made.key in swept.keys
    assert [memory.name for memory in mine.list().data] == ["dog"]


def test_a_clock_that_jumps_back_breaks_no_order(mine: TenantMemories, ticks: Ticks, tmp_path: Path) -> None:
    mine.create("cat", model="tiny", expires_after=Expiry(100))
    commit(mine, "cat", tmp_path, "a")
    ticks.now -= 365 * 24 * _HOUR
    commit(mine, "cat", tmp_path, "a", "b")
    mine.touch(mine.get("cat").id)
    two, one = mine.versions("cat").data
    assert (two.number, two.created_at) == (2, one.created_at)
    ticks.now += 365 * 24 * _HOUR + 50_000
    assert mine.get("cat").version == 2


def test_nobody_has_more_than_the_quota(memories: Memories, tmp_path: Path) -> None:
    size = make_state(tmp_path, "a").path.stat().st_size
    mine = memories.of("bounded", Quota(memories=2, bytes=2 * size))
    for name in ("cat", "dog"):
        mine.create(name, model="tiny")
        commit(mine, name, tmp_path, "a")
    commit(mine, "dog", tmp_path, "b")
    with pytest.raises(QuotaError, match=r"There would be 3 memories, and there may be 2"):
        mine.fork("cat", "new")
    with pytest.raises(QuotaError, match=r"bytes, and there may be"):
        commit(mine, "dog", tmp_path, "c")
    assert (mine.usage().memories, mine.usage().bytes, mine.get("dog").version) == (2, 2 * size, 2)


# The second is an id once it is composed: a Kelvin sign becomes a K.
_NO_IDS = ("mem_" + "a" * 24, "mem_" + "a" * 23 + "\u212a")
_NO_NAMES = ("", ".hidden", "-o", "a/b", "a:b", "a b", "a\nb", "a" * 101, *_NO_IDS, "\ud800")


@pytest.mark.parametrize("name", _NO_NAMES)
def test_a_name_is_one_that_can_be_shown(name: str) -> None:
    with pytest.raises(StoreError, match="cannot name a memory"):
        require_name(name)


def test_names_of_every_script(mine: TenantMemories) -> None:
    for name in ("Müller", "日本語", "हिन्दी", "עברית", "Ωmega_1.0", "ครู"):
        composed = unicodedata.normalize("NFC", name)
        assert mine.create(unicodedata.normalize("NFD", name), model="tiny").name == composed
        assert mine.get(composed).name == composed


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata may have 16 pairs; it has 17"),
        ({"metadata": {"a": "b" * 513}}, "metadata 'a' may have 512 characters"),
        ({"metadata": {'"': "b"}}, "cannot be a key of metadata"),
        ({"subject": "a\0"}, "subject holds a character that is no text"),
        ({"options": {"a": float("nan")}}, "options cannot be kept"),
        ({"expires_after": Expiry(0)}, "seconds are 1 to"),
    ],
)
def test_what_no_database_could_hold_is_refused(given: dict[str, Any], problem: str, mine: TenantMemories) -> None:
    with pytest.raises(StoreError, match=problem):
        mine.create("cat", model="tiny", **given)
