"""Named memories: what can be a name, what is listed, and that no acknowledged write is lost."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from byheart import load, open_state
from byheart.errors import (
    CorruptStateError,
    InputError,
    StateError,
    StateMismatchError,
    StoreError,
    UnknownNameError,
    UsageError,
)
from byheart.model.backbone import Backbone
from byheart.protocol import state_file as states
from byheart.protocol.checkpoint import save_pretrained
from byheart.session.session import Session
from byheart.store.folder import Store
from tests.samples import ROOT

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
    template = session.encoder.template_tokens()
    assert header.slots == header.capacity == 8 + len(template["opening"]) + len(template["receipt"])


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


def test_an_option_that_is_newer_than_a_memory_is_at_its_default(store: Store, cat: Session) -> None:
    older = replace(cat.header, options={"chunk_tokens": 1024})
    states.save(store.existing("cat"), cat.state, older)
    assert store.open("cat", bits=16).header == cat.header
    with pytest.raises(UsageError, match="was made with bits 16, not 8"):
        store.open("cat", bits=8)


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


# ---- what killed writers leave ----

# The process kills itself while its second save is half done, with the lock held.
_KILLED = """
import os, sys
from pathlib import Path
from byheart.store.folder import Store

def die(path, content):
    open(path, "wb").write(content[:len(content) // 2])
    os.kill(os.getpid(), 9)

store = Store(sys.argv[1])
session = store.open("cat")
Path.write_bytes = die
with store.updating("cat", session):
    session.write("More.")
"""


def _leave(store: Store, *names: str) -> None:
    """What killed writers of these memories leave: a file half written, now and in earlier versions, and a lock."""
    for name in names:
        for file in (f".{name}.a1b2c3d4.tmp", f".{name}-a1b2c3d4.tmp", f".{name}.lock"):
            (store.home / file).write_bytes(b"half of a memory")


def _files(store: Store) -> list[str]:
    return sorted(os.listdir(store.home))


@pytest.mark.skipif(os.name != "posix", reason="processes are killed otherwise")
def test_what_a_killed_writer_leaves_is_gone_after_the_next_write(store: Store, cat: Session) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _KILLED, str(store.home)]
    assert subprocess.run(command, env=environ, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert len(_files(store)) > 1
    with store.updating("cat", cat):
        cat.write("more")
    assert _files(store) == ["cat.safetensors"]


def test_listing_removes_what_is_left_also_of_memories_that_are_no_more(store: Store, cat: Session) -> None:
    _leave(store, "cat", "dog", "a.b-c")
    (store.home / ".somebody else's.tmp").write_text("stays")
    assert [entry.name for entry in store.entries()] == ["cat"]
    assert _files(store) == [".somebody else's.tmp", "cat.safetensors"]


def test_forgetting_removes_all_that_bears_the_name(store: Store, cat: Session) -> None:
    store.fork("cat", "cat.2")
    _leave(store, "cat")
    store.forget("cat")
    assert _files(store) == ["cat.2.safetensors"]


@pytest.fixture
def linked(store: Store, cat: Session, tmp_path: Path) -> Path:
    """The file that the memory ``cat`` is a link to, with what killed writers left beside it."""
    target = tmp_path / "elsewhere" / "file.safetensors"
    target.parent.mkdir()
    store.path("cat").rename(target)
    store.path("cat").symlink_to(target)
    for name in (".file.a1b2c3d4.tmp", "other.txt"):
        (target.parent / name).write_text("left")
    return target


def test_listing_removes_what_is_left_beside_the_file_of_a_link(store: Store, linked: Path) -> None:
    assert [entry.problem for entry in store.entries()] == [""]
    assert sorted(os.listdir(linked.parent)) == ["file.safetensors", "other.txt"]


def test_forgetting_a_link_forgets_the_file_that_it_points_to(store: Store, linked: Path) -> None:
    assert store.forget("cat") == linked
    assert (_files(store), os.listdir(linked.parent)) == ([], ["other.txt"])


def test_forgetting_a_link_to_no_memory_leaves_that_file(store: Store, linked: Path) -> None:
    store.path("cat").unlink()
    store.path("cat").symlink_to(linked.parent / "other.txt")
    assert store.forget("cat") is None
    assert _files(store) == []
    assert (linked.parent / "other.txt").read_text() == "left"


def test_a_memory_that_cannot_be_forgotten_stays(store: Store, linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(StoreError, match=r"'cat' cannot be forgotten: '.*file\.safetensors': Permission denied"):
            store.forget("cat")
    assert store.exists("cat")


def test_listing_leaves_alone_what_is_being_written(store: Store, cat: Session) -> None:
    _leave(store, "cat")
    with FileLock(store.home / ".cat.lock"):
        assert [entry.name for entry in store.entries()] == ["cat"]
        assert ".cat.a1b2c3d4.tmp" in _files(store)
    store.entries()
    assert _files(store) == ["cat.safetensors"]


def test_a_lock_that_goes_lets_one_writer_in_at_a_time(store: Store, cat: Session) -> None:
    inside, most = 0, 0
    counting = threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        for _ in range(20):
            with store.updating("cat", cat.fork()):
                with counting:
                    inside, most = inside + 1, max(most, inside + 1)
                with counting:
                    inside -= 1

    writers = [threading.Thread(target=enter) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert most == 1
    assert _files(store) == ["cat.safetensors"]


# ---- what else is in the folder ----


@pytest.fixture
def odd(store: Store, cat: Session) -> list[str]:
    """The names of things in the folder that are called as memories are, but are none."""
    store.path("folder").mkdir()
    store.path("dangling").symlink_to(store.home / "nowhere")
    store.path("device").symlink_to("/dev/zero")
    os.mkfifo(store.path("pipe"))
    with socket.socket(socket.AF_UNIX) as bound:
        # The path of a socket is short.
        before = os.getcwd()
        os.chdir(store.home)
        bound.bind("socket.safetensors")
        os.chdir(before)
    return ["dangling", "device", "folder", "pipe", "socket"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_what_is_no_file_hides_no_memory_and_is_not_opened(store: Store, odd: list[str]) -> None:
    entries = {entry.name: entry for entry in store.entries()}
    assert sorted(entries) == sorted([*odd, "cat"])
    assert entries["cat"].header is not None
    for name in odd:
        assert "is no file that can be read" in entries[name].problem
        for use in (store.entry, store.forget, store.open):
            with pytest.raises(StoreError, match=f"'{name}' is no file that can be read"):
                use(name)
        with pytest.raises(StoreError, match="There is a memory"):
            store.fork("cat", name)


def test_a_memory_that_another_forgets_meanwhile_is_not_listed(store: Store, cat: Session) -> None:
    class Forgetful(Store):
        """Of the names that it lists, one is forgotten before it is examined."""

        def names(self) -> list[str]:
            found = Store.names(self)
            self.path("cat").unlink()
            return found

    store.fork("cat", "dog")
    assert [entry.name for entry in Forgetful(store.home).entries()] == ["dog"]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file")
    for use in (store.names, store.entries, lambda: store.existing("cat")):
        with pytest.raises(StoreError, match=r"Memories in '.*file' cannot be listed: Not a directory"):
            use()


def test_the_home_of_nobody_is_a_folder_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("~nobody-of-this-name/memories").names() == []


# ---- writers agree by what a file holds ----


def test_another_text_in_the_same_second_is_not_overwritten(
    store: Store, cat: Session, new_session: NewSession
) -> None:
    store.forget("cat")
    other = new_session()
    with store.updating("cat", other):
        other.write("The dog is called Rexi.")
    # The same source, second and lengths: only the content differs.
    written = [replace(entry, at=cat.header.written[0].at) for entry in other.header.written]
    states.save(store.path("cat"), other.state, replace(other.header, written=written))
    assert store.entry("cat").header == cat.header
    with store.updating("cat", cat):
        assert all(torch.equal(cat.state[name], other.state[name]) for name in other.state)


def test_a_save_that_fails_leaves_the_session_usable(
    store: Store, new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    session = new_session()
    for texts in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(states, "serialize", full)
            with pytest.raises(StateError, match="No space left"), store.updating("cat", session):
                session.write("The cat is called Muck.")
        assert len(session.header.written) == texts - 1
        with store.updating("cat", session):
            session.write("The cat is called Muck.")
        header = store.entry("cat").header
        assert header is not None
        assert len(header.written) == texts
        assert session.reading.slots == header.tokens


def test_a_write_that_diverged_leaves_the_memory_and_the_session(
    store: Store, cat: Session, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, write = store.path("cat").read_bytes(), type(cat.method).write
    with monkeypatch.context() as patch:
        patch.setattr(
            type(cat.method), "write", lambda *given: {name: t * torch.nan for name, t in write(*given).items()}
        )
        with pytest.raises(StateError, match="The write diverged"), store.updating("cat", cat):
            cat.write("The dog is called Rex.")
    assert store.path("cat").read_bytes() == before
    assert len(cat.header.written) == 1
    with store.updating("cat", cat):
        cat.write("The dog is called Rex.")
    assert len(store.open("cat", model=backbone).header.written) == 2


def test_a_home_that_cannot_be_is_said_so(tmp_path: Path, new_session: NewSession) -> None:
    (tmp_path / "file").write_text("in the way")
    session = new_session()
    with (
        pytest.raises(StoreError, match=r"Memories cannot be kept in '.*file'"),
        Store(tmp_path / "file").updating("cat", session),
    ):
        session.write("text")
