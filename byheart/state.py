"""What one session keeps, as a value in memory and as a file that its user owns.

A state is named tensors and nothing else. On disk it is one safetensors file whose header says which backbone,
mechanism and options it belongs to, what was written into it and when, and a hash over all of it. Writes are atomic:
a crash leaves the file as it was. Nothing here knows what the tensors mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from byheart.errors import CorruptStateError, StateError, StateMismatchError

State: TypeAlias = Mapping[str, Tensor]
FORMAT = 1


@dataclass(frozen=True)
class Written:
    """One text that was written: where it came from, when (UTC), and how much it was."""

    source: str
    at: str
    tokens: int
    characters: int

    @classmethod
    def now(cls, source: str, *, tokens: int, characters: int) -> Written:
        """An entry for this moment."""
        return cls(source, datetime.now(timezone.utc).isoformat(timespec="seconds"), tokens, characters)


@dataclass(frozen=True)
class Header:
    """What a state belongs to and what was written into it.

    ``backbone``, ``tokenizer`` and ``adapter`` are fingerprints; ``model`` is the name that opens the backbone,
    ``dtype`` the precision it runs in, ``learned`` the folder of the memory's learned parts, where it has one. ``rows``
    of ``capacity`` are held in the prefix; a capacity of None grows.
    """

    mechanism: str
    options: dict[str, Any]
    backbone: str
    tokenizer: str
    adapter: str
    model: str
    dtype: str = "float32"
    learned: str = ""
    rows: int = 0
    capacity: int | None = None
    format: int = FORMAT
    written: list[Written] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of text written so far."""
        return sum(entry.tokens for entry in self.written)

    @property
    def characters(self) -> int:
        """Characters of text written so far."""
        return sum(entry.characters for entry in self.written)

    def with_written(self, entry: Written) -> Header:
        """The same header after one more text."""
        return replace(self, written=[*self.written, entry])

    def require(self, mine: Header, where: str) -> None:
        """Raise StateMismatchError unless a state with this header can be read where ``mine`` is in use."""
        sides = {
            "mechanism": (self.mechanism, mine.mechanism),
            "model": (f"{self.model} ({self.backbone})", f"{mine.model} ({mine.backbone})"),
            "tokenizer": (self.tokenizer, mine.tokenizer),
            "precision": (self.dtype, mine.dtype),
            "options": (self.options, mine.options),
            "trained parts": (self.adapter, mine.adapter),
        }
        for what, (theirs, ours) in sides.items():
            same = self.backbone == mine.backbone if what == "model" else theirs == ours
            if not same:
                raise StateMismatchError(
                    f"{where} was made with another {what}: it has {theirs}, this session has {ours}. "
                    "Open it with what made it, or write the text again."
                )


def nbytes(state: State) -> int:
    """Bytes of all tensors of a state."""
    return sum(tensor.nbytes for tensor in state.values())


def fingerprint(tensors: State, dtype: torch.dtype, *, samples: int) -> str:
    """A name for weights: shapes and evenly spaced values of every tensor, rounded to ``dtype``.

    Any training changes it; a precision above ``dtype`` does not.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // samples)][:samples].to("cpu", dtype).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(memoryview(_as_bytes(some)))
    return digest.hexdigest()[:32]


def save(path: Path, state: State, header: Header) -> int:
    """Write a state file atomically and give its size in bytes. Raises StateError; the earlier file then remains."""
    tensors = _apart(state)
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


def _apart(state: State) -> dict[str, Tensor]:
    """The tensors as a file holds them, none a view of another: safetensors refuses those."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in state.items():
        whole = tensor.detach().cpu().contiguous()
        place = whole.untyped_storage().data_ptr()
        apart[name] = whole.clone() if place in taken else whole
        taken.add(place)
    return apart


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
        made_by = fields.get("format")
        if made_by != FORMAT:
            raise StateMismatchError(
                f"'{path}' has state format {made_by}; this version of byheart reads format {FORMAT}."
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
        digest.update(memoryview(_as_bytes(tensor)))
    return digest.hexdigest()


def _as_bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
