"""The reading of an evicted memory comes back from a file as it was, within bounds, and is deleted with the memory."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from byheart.methods.compact import Compact
from byheart.model.reading import KV, Reading
from byheart.model.slices import Slices
from byheart.protocol import state_file
from byheart.protocol.state import State
from byheart.serving.engine.decoded_files import DecodedFiles
from byheart.session.session import Session
from tests.serving.test_engine import TALK, TEXTS, Saved, asking, expected, make, said, session, together


@pytest.fixture(scope="module")
def memories() -> list[Session]:
    make().close()
    return [session("compact", text) for text in TEXTS]


@pytest.fixture
def files(tmp_path: Path) -> DecodedFiles:
    return DecodedFiles(tmp_path, 1 << 30)


def keep(files: DecodedFiles, key: str, own: Session) -> None:
    files.keep(key, own.reading, own.header, own.bytes)


def settled() -> None:
    """Wait until nothing is being written."""
    for thread in threading.enumerate():
        if thread.name == "byheart-decoded":
            thread.join(20)
            assert not thread.is_alive()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_reading_comes_back_as_it_was(files: DecodedFiles, memories: list[Session], tmp_path: Path) -> None:
    assert files.read("a") is None
    for _ in range(2):
        keep(files, "a", memories[0])
        settled()
    found, known = files.read("a"), memories[0].reading
    assert found is not None
    assert found.prefix is not None
    assert known.prefix is not None
    assert found.slots == known.slots
    for ours, theirs in zip(
        (*found.prefix.keys, *found.prefix.values), (*known.prefix.keys, *known.prefix.values), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert len(names(tmp_path)) == 1
    assert files.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_masks_of_heads_come_back_too(files: DecodedFiles, memories: list[Session]) -> None:
    prefix = memories[0].reading.prefix
    assert prefix is not None
    masks = tuple(torch.rand(keys.shape[:3]) < 0.5 for keys in prefix.keys)
    files.keep("a", Reading(KV(prefix.keys, prefix.values, masks)), memories[0].header, 1)
    settled()
    found = files.read("a")
    assert found is not None
    assert found.prefix is not None
    assert all(torch.equal(*pair) for pair in zip(found.prefix.masks, masks, strict=True))


def test_what_is_as_large_itself_is_not_kept(files: DecodedFiles, tmp_path: Path) -> None:
    for method in ("full", "nothing", "last-ffn"):
        keep(files, method, session(method, TEXTS[0]))
    assert files.keys == []


def test_they_keep_to_their_bytes_the_least_recently_used_go_first(memories: list[Session], tmp_path: Path) -> None:
    most = int(2.9 * memories[0].reading.bytes)
    files = DecodedFiles(tmp_path, most)
    for key in "abc":
        keep(files, key, memories[0])
        settled()
        files.read("a")
    assert [key for key in "abc" if files.read(key) is not None] == ["a", "c"]
    assert files.bytes <= most
    assert len(names(tmp_path)) == 2
    none = DecodedFiles(tmp_path, 0)
    keep(none, "d", memories[0])
    assert none.keys == []


def test_the_disk_s_last_room_is_left_to_the_memories(
    files: DecodedFiles, memories: list[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 1 << 20))
    keep(files, "a", memories[0])
    assert files.keys == []


def test_what_cannot_be_written_or_read_is_as_if_it_had_not_been_kept(
    memories: list[Session], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    files = DecodedFiles(tmp_path / "file", 1 << 30)
    keep(files, "a", memories[0])
    settled()
    assert files.keys == []
    assert "not kept on disk" in caplog.text
    files = DecodedFiles(tmp_path, 1 << 30)
    keep(files, "a", memories[0])
    settled()
    [path] = tmp_path.glob("decoded-*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert files.read("a") is None
    assert "decoded again" in caplog.text
    assert not path.exists()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Files are written once this is set."""
    gate, save = threading.Event(), state_file.save

    def late(*given: Any) -> Any:
        assert gate.wait(20)
        return save(*given)

    monkeypatch.setattr(state_file, "save", late)
    return gate


def test_what_is_dropped_leaves_no_file_also_while_it_is_written(
    files: DecodedFiles, memories: list[Session], tmp_path: Path, gate: threading.Event
) -> None:
    gate.set()
    keep(files, "a", memories[0])
    settled()
    gate.clear()
    keep(files, "b", memories[1])
    assert files.keys == ["a", "b"]
    files.drop(["a", "b", "c"])
    gate.set()
    settled()
    assert (files.keys, names(tmp_path)) == ([], [])


def test_what_is_closed_leaves_no_file_and_keeps_none(
    files: DecodedFiles, memories: list[Session], tmp_path: Path, gate: threading.Event
) -> None:
    keep(files, "a", memories[0])
    threading.Timer(0.2, gate.set).start()
    files.close()
    keep(files, "b", memories[1])
    assert (files.keys, names(tmp_path)) == ([], [])


def test_what_is_being_written_is_not_much_at_a_time(
    files: DecodedFiles, memories: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is still in memory, from which it was evicted."""
    gate = threading.Event()
    monkeypatch.setattr(state_file, "save", lambda *given: (int(gate.wait(20)) << 29, ""))
    prefix = memories[0].reading.prefix
    assert prefix is not None
    # Views of one number: many bytes by their shape, none in memory.
    large = tuple(part[:, :, :1].expand(-1, -1, 1 << 20, -1) for part in prefix.keys)
    for key in ("a", "b"):
        files.keep(key, Reading(KV(large, large)), memories[0].header, 1)
    assert files.keys == ["a"]
    gate.set()
    settled()
    files.keep("b", Reading(KV(large, large)), memories[0].header, 1)
    settled()
    assert files.keys == ["a", "b"]


def test_a_file_that_cannot_be_deleted_now_is_deleted_later(
    files: DecodedFiles, memories: list[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(files, "a", memories[0])
    settled()
    with monkeypatch.context() as patch:

        def refuse(self: Path, missing_ok: bool = False) -> None:
            raise PermissionError("no")

        patch.setattr(Path, "unlink", refuse)
        files.drop(["a"])
    assert files.keys == []
    assert len(names(tmp_path)) == 1
    files.drop(["b"])
    assert names(tmp_path) == []


# ---- in an engine ----


def test_an_evicted_memory_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "decoded"
    folder.mkdir()
    engine = make(max_resident=1, decoded=folder)
    one, two = (Saved(tmp_path / f"{n}.safetensors", session("compact", TEXTS[n])) for n in (0, 1))
    decoded, prepare = list[State](), Compact.prepare

    def counted(self: Compact, state: State, *, longest: int) -> Slices[None]:
        decoded.append(state)
        yield from prepare(self, state, longest=longest)

    answers = {key: expected(own, "x", TALK) for key, own in (("one", one), ("two", two))}
    monkeypatch.setattr(Compact, "prepare", counted)
    for _ in range(3):
        for key, own in (("one", one), ("two", two)):
            assert together(said(engine, asking(own, "x")))[0][0] == answers[key]
            settled()
    assert len(decoded) == 2
    # What was deleted leaves no file, whoever has deleted it.
    assert set(engine.residents) == {one.ref.key, two.ref.key}
    engine.drop(engine.residents)
    assert (engine.residents, names(folder)) == ([], [])
    assert together(said(engine, asking(one, "x")))[0][0] == answers["one"]
    assert together(said(engine, asking(two, "x")))[0][0] == answers["two"]
    engine.close()
    assert names(folder) == []


def test_a_reading_is_not_loaded_before_there_is_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else those who wait would hold in memory what there is no room for."""
    folder = tmp_path / "decoded"
    folder.mkdir()
    engine = make(max_resident=1, decoded=folder)
    one, two = (Saved(tmp_path / f"{n}.safetensors", session("compact", TEXTS[n])) for n in (0, 1))
    for own in (one, two):
        together(said(engine, asking(own, "x")))
        settled()
    running_at_load, read = list[int](), DecodedFiles.read

    def watched(self: DecodedFiles, key: str) -> Reading | None:
        running_at_load.append(engine.load.running)
        return read(self, key)

    async def play() -> None:
        answer = aiter(engine.ask(asking(one, "x")))
        await anext(answer)
        # From here on the first keeps the only place, until its answer has ended.
        waiting = asyncio.create_task(said(engine, asking(two, "x")))
        async for _ in answer:
            pass
        await waiting

    monkeypatch.setattr(DecodedFiles, "read", watched)
    asyncio.run(play())
    engine.close()
    assert running_at_load == [1, 1]
