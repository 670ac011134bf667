"""A state as a file that its user owns.

On disk a state is one safetensors file whose header says which backbone,
method and options it belongs to, what was written into it and when, and a hash over all of it. Writes are atomic:
a crash leaves the file as it was. Nothing here knows what the tensors mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save as serialize
from torch import Tensor

from byheart.errors import CorruptStateError, StateError
from byheart.files import replacing, sweep
from byheart.model.fingerprint import as_bytes
from byheart.protocol.header_file import (
    load_hash as load_hash,
    load_header as load_header,
    open_header,
    parse_header,
)
from byheart.protocol.state import Header, State
from byheart.protocol.tensor_file import TensorFile


@dataclass(frozen=True)
class OpenedState:
    """A state file that is open: its header was checked, its tensors were not read. ``hash`` is the recorded one."""

    path: Path
    header: Header
    hash: str
    _text: str
    _tensors: TensorFile

    def read(self) -> State:
        """The tensors, on the CPU, in memory of their own. Raises CorruptStateError where they are not as saved."""
        try:
            tensors = self._tensors.read()
        except OSError as error:
            raise CorruptStateError(f"'{self.path}' cannot be read ({error}); restore it from a copy.") from error
        if _hash(tensors, self._text) != self.hash:
            raise CorruptStateError(
                f"'{self.path}' was changed after it was written (its hash differs); restore it from a copy."
            )
        return tensors


def save(path: Path, state: State, header: Header) -> tuple[int, str]:
    """Write a state file atomically; gives its bytes and its hash. Raises StateError; the earlier file then remains."""
    tensors = _separate(state)
    try:
        text = json.dumps(asdict(header), sort_keys=True, allow_nan=False)
        parse_header(path, text)
        metadata = {"byheart": text, "hash": _hash(tensors, text)}
        sweep(path)
        with replacing(path) as scratch:
            # safetensors' own writer makes a file of its own beside this one, which nobody would sweep.
            size = scratch.write_bytes(serialize(tensors, metadata=metadata))
    except (OSError, SafetensorError, ValueError) as error:
        raise StateError(f"'{path}' could not be written: {error}. The earlier memory is as it was.") from error
    return size, metadata["hash"]


def _separate(state: State) -> dict[str, Tensor]:
    """The tensors as a file holds them, none a view of another: safetensors refuses those."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage().data_ptr()
        separate[name] = whole.clone() if storage in storages else whole
        storages.add(storage)
    return separate


def load(path: Path) -> tuple[State, Header]:
    """Read and check a state file. Raises StateError, or CorruptStateError where it is not what was written."""
    with opened(path) as file:
        return file.read(), file.header


@contextlib.contextmanager
def opened(path: Path) -> Iterator[OpenedState]:
    """Before: the file is closed. Inside: open, and its header checked. After: closed. Raises as ``load`` does."""
    with open_header(path) as file:
        yield OpenedState(file.path, file.header, file.hash, file.text, file.tensors)


def _hash(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(memoryview(as_bytes(tensor)))
    return digest.hexdigest()
