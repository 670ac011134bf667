"""Files that only look like safetensors are refused before anything is allocated for them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from byheart.protocol.tensor_file import open_tensors


def made(path: Path, header: Any, data: bytes = bytes(8)) -> Path:
    """A file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def place(**change: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}


def test_a_file_is_read_as_safetensors_does(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.tensor([True, False, True]),
        "c": torch.zeros(0, 3, dtype=torch.bfloat16),
        "d": torch.tensor(7),
    }
    save_file(tensors, tmp_path / "a", metadata={"x": "y"})
    with open_tensors(tmp_path / "a") as file:
        assert file.metadata == {"x": "y"}
        twice = file.read(), file.read()
    for read in twice:
        assert read.keys() == load_file(tmp_path / "a").keys()
        assert all(
            torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items()
        )


def test_tensors_that_do_not_lie_evenly_are_read(tmp_path: Path) -> None:
    header = {"a": place(dtype="U8", shape=[1], data_offsets=[0, 1]), "b": place(shape=[1], data_offsets=[1, 5])}
    with open_tensors(made(tmp_path / "a", header, b"\x07\x00\x00\x80\x3f")) as file:
        assert {name: tensor.tolist() for name, tensor in file.read().items()} == {"a": [7], "b": [1.0]}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": 1, "a": 1}',
        {},
        {"a": 3},
        {"a": {}},
        {"a": place(dtype="F99")},
        {"a": place(dtype=[])},
        {"a": place(shape="2")},
        {"a": place(shape=[-2])},
        {"a": place(shape=[2.0])},
        {"a": place(shape=[1 << 70])},
        {"a": place(shape=[1 << 40, 1 << 40])},
        {"a": place(shape=[1] * 8 + [2])},
        {"a": place(shape=[3])},
        {"a": place(data_offsets=[0, 9])},
        {"a": place(data_offsets=[8, 0])},
        {"a": place(data_offsets=[0])},
        {"a": place(data_offsets=[4, 12])},
        {"a": place(shape=[1], data_offsets=[0, 4])},
        {"a": place(), "b": place()},
        {"a": place(), "b": place(shape=[0, 1 << 60, 1 << 60], data_offsets=[8, 8])},
        {"a": place(), "__metadata__": {"x": 1}},
        {"a": place(), "__metadata__": []},
        {"a": place(shape=[1 << 50], data_offsets=[0, 1 << 52])},
    ],
    ids=lambda header: str(header)[:60],
)
def test_what_is_no_such_file_is_refused_in_one_line(tmp_path: Path, header: Any) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]{1,300}$"), open_tensors(made(tmp_path / "a", header)):
        pass


@pytest.mark.parametrize("length", [9, 1 << 20, 100_000_001, 1 << 63])
def test_a_header_is_within_the_file(tmp_path: Path, length: int) -> None:
    (tmp_path / "a").write_bytes(length.to_bytes(8, "little") + bytes(8))
    with pytest.raises(ValueError, match=f"should have {length} bytes"), open_tensors(tmp_path / "a"):
        pass


@pytest.mark.parametrize(
    ("tensors", "message"), [(100_001, "100,001 tensors, more than 100,000"), (1_500_000, "values")]
)
def test_a_file_of_very_many_tensors_is_refused_within_seconds(tmp_path: Path, tensors: int, message: str) -> None:
    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"{n}":{empty}' for n in range(tensors)) + "}").encode()[:79_000_000]
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
    start = time.process_time()
    with pytest.raises(ValueError, match=message), open_tensors(tmp_path / "a"):
        pass
    assert time.process_time() - start < 8


def test_a_file_that_becomes_shorter_is_noticed(tmp_path: Path) -> None:
    with open_tensors(
        made(tmp_path / "a", {"a": place(shape=[50_000], data_offsets=[0, 200_000])}, bytes(200_000))
    ) as file:
        (tmp_path / "a").write_bytes(b"")
        with pytest.raises(OSError, match="became shorter"):
            file.read()
