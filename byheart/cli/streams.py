"""The standard streams of a command: open, and able to show any text."""

from __future__ import annotations

import io
import logging
import os
import sys

from byheart.cli.printable import PrintableFormatter


def prepare() -> None:
    """Open what was closed; show what an encoding lacks as an escape; keep what is logged from steering a terminal."""
    _reopen()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())


def show_info(name: str) -> None:
    """Show on standard error what a logger is told, and not only its warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(message)s"))
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _reopen() -> None:
    # A closed one's number would go to the next file that is opened: a memory, into which a library then prints.
    # Nothing can be written to this standard output, so that a command still fails which cannot say what it did.
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def drop_output() -> None:
    """Forget what waits for a standard output that cannot be written: Python would fail on it once more at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
