"""The command line, run in this process: how it ended and what it said."""

from __future__ import annotations

import io
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from byheart.cli import main

# What a terminal obeys: the control characters but tab and newline, and the marks that turn the direction of text.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Ended:
    """A command's exit code and output; ``crash`` is the end of a traceback."""

    code: int
    out: str
    err: str
    crash: str = ""

    def problems(self) -> list[str]:
        """What no command may do, whatever it was given."""
        found = [f"traceback: {self.crash}"] if self.crash else []
        if "Traceback" in self.err:
            found.append(f"a traceback was shown: {self.err[-200:]!a}")
        if not found and self.code not in (0, 1, 2, 130):
            found.append(f"it ended with code {self.code}")
        if not found and self.code == 1 and not self.err.splitlines()[-1:][0:1]:
            found.append("it failed without a word")
        for stream, text in (("stdout", self.out), ("stderr", self.err)):
            raw = _OBEYED.search(text)
            if raw:
                found.append(f"{stream} has {raw[0]!a} raw: {text[max(0, raw.start() - 40) : raw.end() + 40]!a}")
        return found


def run(arguments: Sequence[str], stdin: bytes = b"") -> Ended:
    """Run ``byheart`` with these arguments and this standard input."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogatepass", write_through=True) for _ in range(2))
    earlier, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    code, crash = 0, ""
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(list(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        code, crash = 1, f"{type(error).__name__} ({place.name}): {str(error)[:160]!a}"
    finally:
        sys.stdin = earlier
    said = [stream.buffer.getvalue().decode("utf-8", "surrogatepass") for stream in (out, err)]  # type: ignore[attr-defined]
    return Ended(code, *said, crash)


def command(*arguments: str) -> list[str]:
    """The same for a process of its own, to be run in the repository's folder."""
    return [sys.executable, "-m", "byheart", *arguments]
