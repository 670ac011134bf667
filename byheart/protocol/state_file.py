"""A state as a file that its user owns.

On disk a state is one safetensors file whose header says which backbone,
method and options it belongs to, what was written into it and when, and a hash over all of it. Writes are atomic:
a crash leaves the file as it was. Nothing here knows what the tensors mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from byheart.errors import CorruptStateError, StateError, StateMismatchError
from byheart.model.fingerprint import as_bytes
from byheart.protocol import format_1
from byheart.protocol.state import FORMAT, Header, State, Written


def save(path: Path, state: State, header: Header) -> int:
    """Write a state file atomically and give its size in bytes. Raises StateError; the earlier file then remains."""
    tensors = _separate(state)
    text = json.dumps(asdict(header), sort_keys=True)
    metadata = {"byheart": text, "hash": _hash(tensors, text)}
    try:
        with _scratch(path) as scratch:
            save_file(tensors, scratch, metadata=metadata)
            with open(scratch, "rb") as file:
                os.fsync(file.fileno())
            size = os.path.getsize(scratch)
            os.replace(scratch, path)
            _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise StateError(f"'{path}' could not be written: {error}. The earlier memory is as it was.") from error
    return size


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


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[str]:
    """A file beside ``path``. Inside: empty, to be written and moved. After: gone, whatever happened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        os.close(handle)
        yield scratch
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)


def load(path: Path) -> tuple[State, Header]:
    """Read and check a state file. Raises StateError, or CorruptStateError where it is not what was written."""
    header, stored = _open(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a safe_open handle is no mapping
    if _hash(tensors, stored["byheart"]) != stored["hash"]:
        raise CorruptStateError(
            f"'{path}' was changed after it was written (its hash differs); restore it from a copy."
        )
    return tensors, header


def load_header(path: Path) -> Header:
    """The header alone, without reading the tensors. Raises as ``load`` does."""
    return _open(path)[0]


def _open(path: Path) -> tuple[Header, dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            stored: dict[str, str] = file.metadata() or {}
    except FileNotFoundError as error:
        raise StateError(f"There is no state file '{path}'.") from error
    except (SafetensorError, OSError) as error:
        raise CorruptStateError(
            f"'{path}' is not a whole safetensors file ({error}); restore it from a copy."
        ) from error
    if "byheart" not in stored or "hash" not in stored:
        raise CorruptStateError(f"'{path}' is a safetensors file, but not a byheart state.")
    try:
        fields = json.loads(stored["byheart"])
        version = fields.get("format")
        if version == 1:
            fields = format_1.header(fields)
        elif version not in (2, FORMAT):
            raise StateMismatchError(
                f"'{path}' has state format {version}; this version of byheart reads formats 1 to {FORMAT}."
            )
        fields["written"] = [Written(**entry) for entry in fields["written"]]
        return Header(**fields), stored
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise CorruptStateError(
            f"'{path}' has a header that cannot be read ({error}); restore it from a copy."
        ) from error


def _hash(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(memoryview(as_bytes(tensor)))
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
