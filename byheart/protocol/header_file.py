"""The header of a state file, read without PyTorch: a thousand memories are listed before that is imported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from byheart.errors import CorruptStateError, StateError, StateMismatchError
from byheart.files import parse_json
from byheart.protocol import format_1
from byheart.protocol.schema import validate
from byheart.protocol.state import FORMAT, Header
from byheart.protocol.tensor_file import TensorFile, open_tensors

_LONGEST = 32 << 20
"""Bytes of a header. As a string within JSON it may take twice as many, which still leaves room for the tensors'."""
_MOST_VALUES = 3_000_000
"""In a header; as many as the shortest entries for what was written have in one of that length."""
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class OpenedHeader:
    """A state file that is open: its header was checked. ``hash`` is the recorded one, ``text`` what it covers."""

    path: Path
    header: Header
    hash: str
    text: str
    tensors: TensorFile


def load_header(path: Path) -> Header:
    """The header alone, without reading the tensors. Raises StateError."""
    with open_header(path) as file:
        return file.header


def load_hash(path: Path) -> str:
    """The hash that a file records of its header and tensors, unchecked. Raises StateError."""
    with open_header(path) as file:
        return file.hash


@contextlib.contextmanager
def open_header(path: Path) -> Iterator[OpenedHeader]:
    """Before: the file is closed. Inside: open, and its header checked. After: closed. Raises StateError."""
    with contextlib.ExitStack() as stack:
        try:
            tensors = stack.enter_context(open_tensors(path))
        except FileNotFoundError as error:
            raise StateError(f"There is no state file '{path}'.") from error
        except OSError as error:
            raise StateError(f"'{path}' cannot be read: {error}.") from error
        except ValueError as error:
            raise CorruptStateError(
                f"'{path}' is not a whole safetensors file ({error}); restore it from a copy."
            ) from error
        stored = tensors.metadata
        if "byheart" not in stored or "hash" not in stored:
            raise CorruptStateError(f"'{path}' is a safetensors file, but not a byheart state.")
        try:
            header = parse_header(path, stored["byheart"])
            digest: str = validate(_Digest, stored["hash"])
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CorruptStateError(
                f"'{path}' has a header that cannot be read ({error}); restore it from a copy."
            ) from error
        yield OpenedHeader(path, header, digest, stored["byheart"], tensors)


def parse_header(path: Path, text: str) -> Header:
    """What a header says. Raises StateMismatchError for another format, ValueError for what is no header.

    Of format 1 it may raise what ``format_1.rename`` does.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text)} characters, more than {_LONGEST}")
    fields = validate(dict[str, Any], parse_json(text, unique=True, most=_MOST_VALUES))
    version = fields.get("format")
    if version not in range(1, FORMAT + 1):
        raise StateMismatchError(
            f"'{path}' has state format {str(version)[:20]}; this version of byheart reads formats 1 to {FORMAT}."
        )
    fields = format_1.rename(fields) if version == 1 else fields
    if "written" not in fields:
        raise ValueError("'written': it is missing")
    header: Header = validate(Header, fields)
    return header
