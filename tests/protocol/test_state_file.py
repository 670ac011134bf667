"""State files: what goes in comes out, what was touched is refused, and a failed write leaves the earlier file."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from byheart.errors import CorruptStateError, StateError, StateMismatchError, UsageError
from byheart.protocol import state_file as states
from byheart.protocol.state import FORMAT, Header, Written, nbytes
from byheart.protocol.state_file import load, load_hash, load_header, opened, save

WRITTEN = [Written("a.txt", "2025-01-02T03:04:05+00:00", 12, 50), Written("chat", "2025-01-02T03:05:05+00:00", 3, 9)]
HEADER = Header(
    method="window",
    options={"sinks": 4, "rate": 1e-5, "forget": "layer", "targets": ["a", "b"], "keep": True},
    backbone="b" * 32,
    tokenizer="t" * 32,
    adapter="a" * 32,
    model="smollm2",
    capacity=12,
    slots=7,
    written=WRITTEN,
)


def mixed() -> dict[str, Tensor]:
    """Every kind of tensor that a state may hold."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 4, 5, generator=generator)
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8)
    return {
        **{str(kind).removeprefix("torch."): (10 * wide).abs().to(kind) for kind in kinds},
        "bool": wide > 0,
        "empty": wide[:0],
        "turned": wide.mT,
        "learned": wide.clone().requires_grad_(),
        "größe": torch.tensor([1]),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.state"


@pytest.fixture
def kept(path: Path) -> bytes:
    """A good file at ``path``, and its bytes."""
    save(path, {"keys.0": torch.arange(40.0).view(1, 2, 4, 5), "seed": torch.tensor([3])}, HEADER)
    return path.read_bytes()


# ---- there and back ----


def test_what_goes_in_comes_out(path: Path) -> None:
    size, _ = save(path, mixed(), HEADER)
    tensors, header = load(path)
    assert header == load_header(path) == HEADER
    assert size == path.stat().st_size
    assert tensors.keys() == mixed().keys()
    for name, tensor in mixed().items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name
        assert not tensors[name].requires_grad


def test_a_state_of_nothing_comes_back(path: Path) -> None:
    save(path, {}, HEADER)
    assert load(path) == ({}, HEADER)


def test_tensors_that_share_memory_come_back(path: Path) -> None:
    """A method may keep parts of one tensor, or one tensor under two names."""
    whole = torch.arange(24.0).view(2, 3, 4)
    state = {"keys": whole[0], "values": whole[1], "first": whole[0, :1], "again": whole[0]}
    save(path, state, HEADER)
    tensors, _ = load(path)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())
    assert path.stat().st_size < 4000


def test_saving_leaves_the_state_alone(path: Path) -> None:
    state = mixed()
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in state.items()}
    save(path, state, HEADER)
    for name, tensor in state.items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.stride() == before[name][1]
    assert state["learned"].requires_grad


def test_folders_are_made(tmp_path: Path) -> None:
    save(tmp_path / "new" / "deep" / "one.state", {"a": torch.ones(1)}, HEADER)
    assert [file.name for file in (tmp_path / "new" / "deep").iterdir()] == ["one.state"]


def test_a_later_state_takes_the_place_of_an_earlier(path: Path, kept: bytes) -> None:
    save(path, {"a": torch.ones(3)}, replace(HEADER, method="full"))
    tensors, header = load(path)
    assert list(tensors) == ["a"]
    assert header.method == "full"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_holds_no_more_than_it_must(path: Path) -> None:
    save(path, {"view": torch.zeros(1000, 1000)[:2, :3]}, HEADER)
    assert path.stat().st_size < 4000


def test_the_hash_names_what_a_file_holds(path: Path, tmp_path: Path) -> None:
    _, digest = save(path, {"a": torch.ones(3)}, HEADER)
    assert load_hash(path) == digest
    assert save(tmp_path / "two.state", {"a": torch.ones(3)}, HEADER)[1] == digest
    for state, header in (({"a": torch.zeros(3)}, HEADER), ({"a": torch.ones(3)}, replace(HEADER, slots=8))):
        assert save(tmp_path / "two.state", state, header)[1] == load_hash(tmp_path / "two.state") != digest


def test_a_file_is_one_whatever_becomes_of_its_name(path: Path, kept: bytes) -> None:
    """A writer replaces it between the reading of its header and of its tensors."""
    with opened(path) as file:
        save(path, {"a": torch.ones(3)}, replace(HEADER, method="full"))
        assert (file.header, sorted(file.read())) == (HEADER, ["keys.0", "seed"])


def test_what_happens_to_a_file_later_changes_no_tensor(path: Path, kept: bytes) -> None:
    tensors, _ = load(path)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with path.open("r+b") as file:
        file.write(bytes(len(kept)))
        file.truncate(100)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


# ---- what was touched ----


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_noticed(path: Path, kept: bytes, where: float, bit: int) -> None:
    place = int(where * len(kept))
    path.write_bytes(kept[:place] + bytes([kept[place] ^ 1 << bit]) + kept[place + 1 :])
    with pytest.raises(StateError):
        load(path)


def test_a_changed_number_is_named_as_such(path: Path, kept: bytes) -> None:
    path.write_bytes(kept[:-3] + bytes([kept[-3] ^ 1]) + kept[-2:])
    with pytest.raises(CorruptStateError, match=r"one\.state' was changed after it was written .*restore it"):
        load(path)


@pytest.mark.parametrize("change", [{"method": "full"}, {"written": []}, {"options": {}}, {"slots": 8}, {"model": "x"}])
def test_a_changed_header_is_noticed(path: Path, kept: bytes, change: dict[str, Any]) -> None:
    rewrite(path, lambda fields: {**fields, **change})
    assert load_header(path) != HEADER
    with pytest.raises(CorruptStateError, match="was changed after it was written"):
        load(path)


def test_tensors_under_exchanged_names_are_noticed(path: Path) -> None:
    state = {"a": torch.ones(3), "b": torch.zeros(3)}
    save(path, state, HEADER)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({"a": state["b"], "b": state["a"]}, path, metadata=metadata)
    with pytest.raises(CorruptStateError, match="was changed after it was written"):
        load(path)


def test_the_same_bytes_in_another_shape_are_noticed(path: Path) -> None:
    save(path, {"a": torch.zeros(2, 6)}, HEADER)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for other in (torch.zeros(3, 4), torch.zeros(2, 6, dtype=torch.int32)):
        save_file({"a": other}, path, metadata=metadata)
        with pytest.raises(CorruptStateError, match="was changed after it was written"):
            load(path)


@pytest.mark.parametrize("left", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(path: Path, kept: bytes, left: float) -> None:
    path.write_bytes(kept[: int(left * len(kept))])
    for read in (load, load_header):
        with pytest.raises(CorruptStateError, match=r"one\.state' is not a whole safetensors file .*restore it"):
            read(path)


def test_bytes_after_the_end_are_refused(path: Path, kept: bytes) -> None:
    path.write_bytes(kept + b"more")
    with pytest.raises(CorruptStateError):
        load(path)


@pytest.mark.parametrize("format", [0, FORMAT + 1, "1", None])
def test_another_format_is_refused_with_both_versions(path: Path, kept: bytes, format: object) -> None:
    rewrite(path, lambda fields: {**fields, "format": format})
    message = f"has state format {format}; this version of byheart reads formats 1 to {FORMAT}"
    for read in (load, load_header):
        with pytest.raises(StateMismatchError, match=message):
            read(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda fields: {name: value for name, value in fields.items() if name != "written"},
        lambda fields: {**fields, "written": [{"source": "x"}]},
        lambda fields: {**fields, "written": 3},
        lambda fields: {**fields, "more": 1},
        lambda fields: {name: value for name, value in fields.items() if name != "backbone"},
        lambda fields: [fields],
        lambda fields: 7,
    ],
)
def test_a_header_that_makes_no_sense_is_refused(path: Path, kept: bytes, spoil: Callable[[Any], Any]) -> None:
    rewrite(path, spoil)
    with pytest.raises(CorruptStateError, match="has a header that cannot be read"):
        load(path)


def changed(**change: Any) -> Callable[[Any], Any]:
    return lambda fields: {**fields, **change}


def rewritten(**change: Any) -> Callable[[Any], Any]:
    return lambda fields: {**fields, "written": [{**fields["written"][0], **change}]}


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        *[
            (changed(**{name: value}), name)
            for name in ("backbone", "tokenizer", "adapter")
            for value in (3, "x\x1b", [])
        ],
        *[(changed(method=value), "method") for value in (3, None, [], "", "a b", "a/b", "a\x1b]52;", "x" * 101)],
        *[(changed(model=value), "model") for value in (3, None, [], {}, "x" * 4097)],
        *[(changed(learned=value), "learned") for value in (3, False, ["a"], "x" * 4097)],
        *[(changed(dtype=value), "dtype") for value in (3, "Float 32", "../x", "")],
        *[(changed(slots=value), "slots") for value in (-1, True, 1.0, "1", None, 1 << 54, [])],
        *[(changed(capacity=value), "capacity") for value in (-1, False, 2.0, "1", 10**400)],
        *[(changed(text_format=value), "text_format") for value in ("chat", 1, None)],
        *[(changed(options=value), "options") for value in (3, None, [], "x", [["a", 1]])],
        (changed(options={str(n): n for n in range(65)}), "options"),
        (changed(options={"x" * 4097: 1}), "options"),
        *[(changed(written=value), "written") for value in (None, "x", {}, [3], [None], [[]], [{}])],
        (lambda fields: {**fields, "written": [{**fields["written"][0], "tokens": 1 << 53}] * 2}, "written"),
        *[(rewritten(source=value), "written.0.source") for value in (3, None, "x" * 4097)],
        *[(rewritten(tokens=value), "written.0.tokens") for value in (-1, True, "3", 1.5, 1 << 60)],
        *[(rewritten(characters=value), "written.0.characters") for value in (-1, None)],
        *[
            (rewritten(at=value), "written.0.at")
            for value in (3, "", "now", "2025-01-02", "2025-01-02T03:04:05", "0001-01-01T00:00:00+00:00")
        ],
        # Some versions of Python read these, others do not.
        *[
            (rewritten(at=value), "written.0.at")
            for value in (
                *("20250102T030405+00:00", "2025-01-02T03:04:05Z", "2025-W01-4T03:04:05+00:00"),
                *("2025-01-02T03:04:05.1+00:00", "2025-01-02T24:00:00+00:00", "2025-01-02T03:04:05+00:00\n"),
                *("2025-02-30T03:04:05+00:00", "2025-01-02T03:04:60+00:00", "\u0662025-01-02T03:04:05+00:00"),
            )
        ],
        (rewritten(at="9999-12-31T23:59:59+00:00"), "written.0.at"),
        (rewritten(more=1), "written.0.more"),
        (changed(**{"more\x1b[2J": 1}), r"more\\x1b\[2J"),
        (lambda fields: {name: value for name, value in fields.items() if name != "tokenizer"}, "tokenizer"),
    ],
)
def test_a_field_that_cannot_be_is_named(path: Path, kept: bytes, spoil: Callable[[Any], Any], field: str) -> None:
    rewrite(path, spoil)
    for read in (load, load_header, load_hash):
        with pytest.raises(CorruptStateError, match=rf"\('{field}.*': .*\); restore it from a copy") as caught:
            read(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"options": ' + "[" * 70 + "]" * 70 + "}",
        '{"format": 2, "format": 2}',
        '{"options": {"a": NaN}}',
        '{"options": {"a": -Infinity}}',
        '{"options": {"a": 1e999}}',
        '{"slots": ' + "9" * 5000 + "}",
        "null",
        "",
        '{"format": 1}',
        '{"format": 1, "mechanism": [], "options": {}}',
        '{"format": 1, "mechanism": "window", "options": [1]}',
    ],
    ids=lambda text: text[:30],
)
def test_json_that_is_no_header_is_refused(path: Path, text: str) -> None:
    save_file({"a": torch.ones(1)}, path, metadata={"byheart": text, "hash": "0"})
    for read in (load, load_header):
        with pytest.raises(CorruptStateError, match="has a header that cannot be read"):
            read(path)


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_a_hash_that_is_none_is_refused(path: Path, kept: bytes, digest: str) -> None:
    """An empty one would be taken for that of a session without a file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({"a": torch.ones(1)}, path, metadata={**metadata, "hash": digest})
    with pytest.raises(CorruptStateError, match="has a header that cannot be read"):
        load_hash(path)


def test_a_file_name_that_is_not_utf8_is_kept(path: Path) -> None:
    written = [replace(WRITTEN[0], source="caf\udce9.txt")]
    save(path, {}, replace(HEADER, written=written, model="mod\udce9l"))
    assert load_header(path).written == written
    assert load_header(path).model == "mod\udce9l"


@pytest.mark.parametrize("change", [{"options": {"a": float("nan")}}, {"slots": -1}, {"model": "x" * 5000}])
def test_what_could_not_be_read_again_is_not_written(path: Path, kept: bytes, change: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="could not be written"):
        save(path, {}, replace(HEADER, **change))
    assert path.read_bytes() == kept


def test_the_name_of_a_source_has_an_end() -> None:
    with pytest.raises(UsageError, match="source may have 4096 characters; it has 4097"):
        Written.now("x" * 4097, tokens=1, characters=1)


def test_a_reader_beside_a_writer_sees_one_file_or_the_other(path: Path) -> None:
    versions = [({"a": torch.full((1000,), float(n))}, replace(HEADER, slots=n)) for n in range(2)]
    save(path, *versions[0])
    done = threading.Event()

    def rewrite_until_done() -> None:
        while not done.is_set():
            for version in versions:
                save(path, *version)

    writer = threading.Thread(target=rewrite_until_done)
    writer.start()
    try:
        seen = [(tensors["a"].unique().tolist(), header.slots) for tensors, header in (load(path) for _ in range(300))]
    finally:
        done.set()
        writer.join()
    assert {tuple(values) for values, slots in seen if values == [slots]} == {(0.0,), (1.0,)}
    assert all(values == [slots] for values, slots in seen)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    """Opening a pipe would wait for a writer."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        for read in (load, load_header, load_hash):
            with pytest.raises(StateError, match=f"{name}' is no regular file"):
                read(tmp_path / name)
    with pytest.raises(StateError, match="There is no state file"):
        load(Path("a\0b"))


def test_a_write_keeps_the_files_mode_and_the_link_to_it(path: Path, kept: bytes) -> None:
    path.chmod(0o640)
    link = path.with_name("link.state")
    link.symlink_to(path)
    save(link, {}, HEADER)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert load(path) == ({}, HEADER)


def test_a_header_that_is_no_json_is_refused(path: Path) -> None:
    save_file({"a": torch.ones(1)}, path, metadata={"byheart": "{", "hash": "0"})
    with pytest.raises(CorruptStateError, match="has a header that cannot be read"):
        load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"byheart": "{}"}])
def test_another_safetensors_file_is_refused(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"a": torch.ones(1)}, path, metadata=metadata)
    with pytest.raises(CorruptStateError, match="is a safetensors file, but not a byheart state"):
        load(path)


def test_what_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"There is no state file '.*none\.state'"):
        load(tmp_path / "none.state")
    with pytest.raises(StateError):
        load(tmp_path)


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a file's header and nothing else."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fields = change(json.loads(metadata["byheart"]))
    save_file(tensors, path, metadata={**metadata, "byheart": json.dumps(fields, sort_keys=True)})


# ---- writes that fail ----


def fails(error: BaseException) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


def half(path: Path, content: bytes) -> None:
    """A full disk in the middle of writing."""
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("where", "name", "failing"),
    [
        (Path, "write_bytes", half),
        (states, "serialize", fails(SafetensorError("cannot"))),
        (os, "replace", fails(PermissionError(13, "Permission denied"))),
        (os, "fsync", fails(OSError(5, "Input/output error"))),
    ],
)
def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(
    path: Path, kept: bytes, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, failing: Callable[..., None]
) -> None:
    monkeypatch.setattr(where, name, failing)
    with pytest.raises(StateError, match=r"one\.state' could not be written: .*The earlier memory is as it was"):
        save(path, {"a": torch.ones(3)}, HEADER)
    monkeypatch.undo()
    assert path.read_bytes() == kept
    assert os.listdir(path.parent) == [path.name]


def test_an_interrupted_write_leaves_the_earlier_file_and_nothing_else(
    path: Path, kept: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "serialize", fails(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save(path, {"a": torch.ones(3)}, HEADER)
    assert path.read_bytes() == kept
    assert os.listdir(path.parent) == [path.name]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StateError, match="could not be written"):
        save(tmp_path / "file" / "one.state", {"a": torch.ones(1)}, HEADER)


# ---- what a state belongs to ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "full"}, "another method: it has window, this session has full"),
        (
            {"backbone": "c" * 32, "model": "qwen"},
            rf"another model: it has smollm2 \({'b' * 32}\), .*qwen \({'c' * 32}\)",
        ),
        ({"tokenizer": "u" * 32}, f"another tokenizer: it has {'t' * 32}, this session has {'u' * 32}"),
        ({"options": {"sinks": 5}}, r"other options: it has \{'sinks': 4.*, this session has \{'sinks': 5\}"),
        ({"adapter": "x" * 32}, f"other trained parts: it has {'a' * 32}, this session has {'x' * 32}"),
        ({"dtype": "bfloat16"}, "another precision: it has float32, this session has bfloat16"),
    ],
)
def test_a_state_of_something_else_is_refused_with_both_sides(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StateMismatchError, match=message):
        HEADER.require(replace(HEADER, **change), "'one.state'")


def test_what_does_not_change_a_reading_does_not_matter() -> None:
    HEADER.require(HEADER, "'one.state'")
    HEADER.require(replace(HEADER, model="/elsewhere", written=[], slots=0, learned="/folder"), "'one.state'")


def test_a_header_counts_what_was_written() -> None:
    assert (HEADER.tokens, HEADER.characters) == (15, 59)
    more = HEADER.with_written(Written.now("b.txt", tokens=5, characters=20))
    assert (more.tokens, len(HEADER.written), len(more.written)) == (20, 2, 3)
    assert more.written[-1].at.endswith("+00:00")
    assert asdict(more)["written"][-1]["source"] == "b.txt"


def test_a_state_knows_its_bytes() -> None:
    assert nbytes({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}) == 58
