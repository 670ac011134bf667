"""Text that is given to a command: files and standard input."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from byheart.cli import terminal
from byheart.errors import InputError

STDIN = "-"
LONGEST = 1 << 28
"""Bytes of a text; a device or a pipe may have no end."""


def read_text(source: str) -> str:
    """The text of a UTF-8 file, or of standard input for ``-``. Raises InputError."""
    shown = "Standard input" if source == STDIN else f"'{source}'"
    try:
        if source == STDIN and sys.stdin.isatty():
            terminal.note("Type or paste the text, then press Ctrl-D.")
        raw = sys.stdin.buffer.read(LONGEST + 1) if source == STDIN else _read_file(source)
        if len(raw) > LONGEST:
            raise InputError(f"{shown} has more than {LONGEST >> 20} MiB of text; write it in parts.")
        text = raw.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown} is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}. Convert it, as with iconv."
        ) from error
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {error.strerror}.") from error
    if not text.strip():
        raise InputError(f"{shown} holds no text to write.")
    return text


def _read_file(source: str) -> bytes:
    with Path(os.path.expanduser(source)).open("rb") as file:
        return file.read(LONGEST + 1)
