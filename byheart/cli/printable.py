r"""Text of others as a terminal may show it.

What would move the cursor, write the clipboard or turn text around is shown as an escape:

\x1b   a control character, DEL among them
\u202e a mark of direction, or a separator of lines
\udcff a half of a character, such as a byte of a file name that is not UTF-8
"""

from __future__ import annotations

import logging
import re

_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
_DIRECTIONS = r"\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_IN_LINE = re.compile(rf"[\t\n{_CONTROLS}{_DIRECTIONS}]")
_IN_ANSWER = re.compile(f"[{_CONTROLS}]")
_LONGEST = 2000


def printable(text: str) -> str:
    """Text that stays within its line."""
    return _IN_LINE.sub(_escape, text)


def printable_answer(text: str) -> str:
    """Text of several lines in any script: marks of direction are part of some."""
    return _IN_ANSWER.sub(_escape, text)


def printable_json(text: str) -> str:
    """JSON that means the same."""
    return _IN_LINE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def error_line(text: str) -> str:
    """A message as one line; the middle of an endless one is left out."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} [...] {line[-_LONGEST // 2 :]}"


class PrintableFormatter(logging.Formatter):
    """Log messages, of which some name what a file says."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record, each printable."""
        return "\n".join(map(printable, logging.Formatter.format(self, record).splitlines()))


def _escape(found: re.Match[str]) -> str:
    return ascii(found.group())[1:-1]
