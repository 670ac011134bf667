"""A safetensors file of somebody else's, read within bounds through one handle.

What is read is one file, whatever becomes of its name meanwhile, and tensors are copies in memory of their own: what is
written to the file later changes none of them. Nothing here knows what the tensors mean.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import Field

from byheart.files import open_regular, parse_json
from byheart.protocol.schema import validate
from byheart.protocol.state import State

LONGEST_HEADER = 80_000_000
"""Bytes of a header; safetensors has a larger bound, 100,000,000."""
MOST_TENSORS = 100_000
"""In a file; every linear layer of the largest mixtures of experts has fewer."""
# A tensor is an object of three values; its shape has up to eight, its place two.
_MOST_VALUES = 14 * MOST_TENSORS
_LARGEST = 1 << 60
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_Number = Annotated[int, Field(ge=0, le=_LARGEST, strict=True)]


@dataclass(frozen=True)
class _Place:
    """What a tensor is, and where it stands in the file's data."""

    dtype: Annotated[str, Field(pattern=f"^({'|'.join(_BYTES)})$")]
    shape: Annotated[list[_Number], Field(max_length=8)]
    data_offsets: tuple[_Number, _Number]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _BYTES[self.dtype]


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file that is open: its header was read, its tensors not yet. ``metadata``: strings by name."""

    metadata: Mapping[str, str]
    places: Mapping[str, _Place]
    file: BinaryIO

    def read(self) -> State:
        """All tensors, on the CPU. Raises OSError where the file is shorter than it was."""
        # A header is read without PyTorch, which takes seconds to import.
        import torch

        from byheart.model.fingerprint import as_bytes

        dtypes = {
            **{"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32},
            **{"I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16},
            **{"F32": torch.float32, "F64": torch.float64},
        }
        start = self.file.tell()
        tensors = {name: torch.empty(place.shape, dtype=dtypes[place.dtype]) for name, place in self.places.items()}
        for name, tensor in tensors.items():
            self.file.seek(start + self.places[name].data_offsets[0])
            if self.file.readinto(memoryview(as_bytes(tensor))) != tensor.nbytes:  # type: ignore[attr-defined]
                raise OSError("it became shorter while it was read")
        self.file.seek(start)
        return tensors


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Before: the file is closed. Inside: open, its header read and found whole. After: closed.

    Raises OSError where it cannot be read or is no regular file, and ValueError where it is no safetensors file.
    """
    with open_regular(path) as file:
        yield _parse(file)


def _parse(file: BinaryIO) -> TensorFile:
    first, size = file.read(8), os.fstat(file.fileno()).st_size
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(size - 8, LONGEST_HEADER):
        raise ValueError(f"its header should have {length} bytes, and the file has {size}")
    header: dict[str, Any] = validate(dict, parse_json(file.read(length).decode(), unique=True, most=_MOST_VALUES))
    metadata = validate(dict[str, str], header.pop("__metadata__", {}))
    if len(header) > MOST_TENSORS:
        raise ValueError(f"it has {len(header):,} tensors, more than {MOST_TENSORS:,}")
    places: dict[str, _Place] = validate(dict[str, _Place], header)
    _require_whole(places, size - 8 - length)
    return TensorFile(metadata, places, file)


def _require_whole(places: Mapping[str, _Place], size: int) -> None:
    """Raise ValueError unless the tensors fill the file's data, each as large as its shape says."""
    end = 0
    for name, place in sorted(places.items(), key=lambda item: item[1].data_offsets):
        begin, stop = place.data_offsets
        # PyTorch counts the elements of an empty tensor too.
        if begin != end or stop - begin != place.nbytes or math.prod(max(1, n) for n in place.shape) > _LARGEST:
            raise ValueError(f"tensor {name[:100]!r} does not stand where it should")
        end = stop
    if end != size:
        raise ValueError(f"its tensors have {end} bytes, and there are {size}")
