"""Named memories: what can be a name, what is listed, and that no acknowledged write is lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from byheart import load, open_state
from byheart.errors import CorruptStateError, InputError, StateMismatchError, StoreError, UnknownNameError, UsageError
from byheart.model.backbone import Backbone
from byheart.protocol import state_file as states
from byheart.protocol.checkpoint import save_pretrained
from byheart.session.session import Session
from byheart.store.folder import Store

NewSession = Callable[..., Session]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture(scope="module")
def backbone(tiny_folder: Path) -> Backbone:
    return Backbone.open(str(tiny_folder))


@pytest.fixture
def new_session(backbone: Backbone) -> NewSession:
    return lambda method="full": load(backbone, method=method)


@pytest.fixture
def cat(store: Store, new_session: NewSession) -> Session:
    """A session of the memory ``cat``, as it was saved."""
    session = new_session()
    with store.updating("cat", session):
        session.write("The cat is called Muck.")
    return session


def test_home_is_given_or_chosen_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYHEART_HOME", str(tmp_path / "chosen"))
    assert Store().home == tmp_path / "chosen"
    assert Store(tmp_path / "given").home == tmp_path / "given"
    monkeypatch.delenv("BYHEART_HOME")
    assert Store().home.name == "byheart"


@pytest.mark.parametrize("name", ["cat", "a.b-c_d", "2", "_x", "n" * 100])
def test_a_name_is_letters_digits_and_three_marks(store: Store, name: str) -> None:
    assert store.path(name) == store.home / f"{name}.safetensors"


@pytest.mark.parametrize("name", ["", ".x", "-x", "a/b", "../a", "/etc/passwd", "a b", "a\n", "żółw", "n" * 101, "a\0"])
def test_nothing_else_is_a_name(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match="cannot name a memory; a name is up to 100 letters"):
        store.path(name)


def test_an_empty_store_has_no_names(store: Store) -> None:
    assert store.names() == []
    assert store.entries() == []
    assert not store.exists("cat")


def test_an_entry_says_what_a_memory_holds_without_opening_its_model(store: Store, cat: Session) -> None:
    entry = store.entry("cat")
    assert store.names() == ["cat"]
    assert entry.header == cat.header
    assert entry.bytes == entry.path.stat().st_size
    assert entry.header.slots == cat.header.tokens == cat.reading.slots
    assert entry.header.capacity is None


def test_a_window_says_how_full_it_is(store: Store, backbone: Backbone) -> None:
    session = load(backbone, method="window", sinks=1, recent=7)
    with store.updating("cat", session):
        session.write("The cat is called Muck.")
    header = store.entry("cat").header
    assert header is not None
    assert (header.slots, header.capacity) == (8, 8)


def test_a_damaged_memory_hides_no_other(store: Store, cat: Session) -> None:
    whole = store.path("cat").read_bytes()
    store.path("bad").write_bytes(whole[:50])
    store.path("odd").write_text("no safetensors at all")
    (store.home / "not a name.safetensors").write_bytes(whole)
    damaged = {entry.name: entry.problem for entry in store.entries() if entry.header is None}
    assert store.names() == ["bad", "cat", "odd"]
    assert damaged.keys() == {"bad", "odd"}
    assert all("is not a whole safetensors file" in problem for problem in damaged.values())
    with pytest.raises(CorruptStateError, match="not a whole safetensors file"):
        store.entry("bad")


def test_a_missing_memory_is_answered_with_the_nearest(store: Store, cat: Session) -> None:
    for use in (store.entry, store.existing, store.forget, store.open):
        with pytest.raises(StoreError, match=r"no memory 'cart'\. Did you mean 'cat'\? `byheart list` shows all"):
            use("cart")


def test_a_memory_continues_where_it_was_saved(store: Store, cat: Session, tiny_folder: Path) -> None:
    session = store.open("cat")
    assert session.header == cat.header
    assert session.ask("Who?", max_tokens=8) == cat.ask("Who?", max_tokens=8)
    assert store.open("cat", model=str(tiny_folder), method="full", chunk_tokens=1024).header == cat.header


def test_an_opened_model_serves_every_memory(store: Store, cat: Session, backbone: Backbone) -> None:
    again, other = store.open("cat", model=backbone), store.open("dog", new=True, model=backbone, method="window")
    assert again.backbone is other.backbone is backbone
    assert again.header == cat.header


def test_a_new_memory_is_there_once_it_is_saved(store: Store, tiny_folder: Path) -> None:
    session = store.open("dog", new=True, model=str(tiny_folder), method="window", recent=9)
    assert session.header.options["recent"] == 9
    assert not store.exists("dog")
    with store.updating("dog", session):
        session.write("Rex")
    assert store.open("dog", new=True).header == session.header


def test_choices_must_be_how_the_memory_was_made(store: Store, cat: Session, other_folder: Path) -> None:
    with pytest.raises(UsageError, match="was made with method 'full', not 'window'"):
        store.open("cat", method="window")
    with pytest.raises(UsageError, match="was made with chunk_tokens 1024, not 5"):
        store.open("cat", chunk_tokens=5)
    with pytest.raises(UnknownNameError, match=r"no option of full 'chunk_token'. Did you mean 'chunk_tokens'"):
        store.open("cat", chunk_token=5)
    with pytest.raises(StateMismatchError, match=r"another model: it has .*tiny.*, this session has .*other"):
        store.open("cat", model=str(other_folder))
    dtype = "float32" if cat.backbone.dtype == torch.bfloat16 else "bfloat16"
    with pytest.raises(StateMismatchError, match=f"another precision: it has .*, this session has {dtype}"):
        store.open("cat", dtype=dtype)


def test_a_trained_memory_is_opened_again_with_its_learned_parts(
    store: Store, backbone: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    trained = load(backbone, method="compressed-kv", tokens=2)
    with torch.no_grad():
        for parameter in trained.method.parameters():
            parameter += 0.1
    save_pretrained(trained.method, tmp_path / "trained")
    session = store.open("cat", new=True, model=str(tiny_folder), method=str(tmp_path / "trained"))
    assert session.method.fingerprint == trained.method.fingerprint
    with store.updating("cat", session):
        session.write("The cat is called Muck.")
    again = store.open("cat", method=str(tmp_path / "trained"))
    assert again.header == session.header
    assert again.header.learned == str(tmp_path / "trained")


def test_a_fork_is_a_copy_under_a_free_name(store: Store, cat: Session) -> None:
    store.fork("cat", "dog")
    (state, header), (copy, same) = states.load(store.path("cat")), states.load(store.path("dog"))
    assert header == same
    assert state.keys() == copy.keys()
    assert all(torch.equal(state[name], copy[name]) for name in state)
    with pytest.raises(StoreError, match="There is a memory 'dog' already"):
        store.fork("cat", "dog")
    with pytest.raises(StoreError, match="cannot name a memory"):
        store.fork("cat", "a/b")
    assert store.names() == ["cat", "dog"]


def test_a_forgotten_memory_is_gone_and_stays_gone(store: Store, cat: Session) -> None:
    store.forget("cat")
    assert store.names() == []
    with pytest.raises(StoreError, match="was forgotten while it was in use"), store.updating("cat", cat):
        cat.write("more")
    assert store.names() == []


def test_what_fails_leaves_the_file_as_it_was(store: Store, cat: Session) -> None:
    before = store.path("cat").read_bytes()
    with pytest.raises(InputError, match="nothing to write"), store.updating("cat", cat):
        cat.write("")
    assert store.path("cat").read_bytes() == before


def test_writers_at_the_same_time_lose_nothing(store: Store, cat: Session) -> None:
    # Hooks are on a model while it is written with, so each thread has its own.
    sessions = [open_state(store.path("cat")) for _ in range(3)]

    def write_three(who: int) -> None:
        session = sessions[who]
        for _ in range(3):
            with store.updating("cat", session):
                session.write("Text.", source=f"writer {who}")

    writers = [threading.Thread(target=write_three, args=(who,)) for who in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    header = store.entry("cat").header
    assert header is not None
    sources = [entry.source for entry in header.written]
    assert sorted(sources[1:]) == sorted(f"writer {who}" for who in range(3) for _ in range(3))
    assert header.slots == header.tokens


def test_another_writer_is_waited_for_and_named(store: Store, cat: Session, caplog: pytest.LogCaptureFixture) -> None:
    held, warned = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(store.home / ".cat.lock"):
            held.set()
            warned.wait(5)

    def notice(record: logging.LogRecord) -> bool:
        warned.set()
        return True

    other = threading.Thread(target=hold)
    other.start()
    held.wait(5)
    caplog.handler.addFilter(notice)
    with caplog.at_level(logging.WARNING), store.updating("cat", cat):
        cat.write("more")
    other.join()
    assert "Memory 'cat' is being written by another process; waiting for it." in caplog.text


def test_a_home_that_cannot_be_is_said_so(tmp_path: Path, new_session: NewSession) -> None:
    (tmp_path / "file").write_text("in the way")
    session = new_session()
    with (
        pytest.raises(StoreError, match=r"Memories cannot be kept in '.*file'"),
        Store(tmp_path / "file").updating("cat", session),
    ):
        session.write("text")
