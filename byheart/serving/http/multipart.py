"""Files in a form (``multipart/form-data``), from a body that was already read within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from byheart.serving.http.failures import Refusal

_MOST_PARTS, _LONGEST_HEAD, _LONGEST_BOUNDARY = 64, 4096, 70


@dataclass(frozen=True)
class Part:
    """A field of a form, or a file where it has the name of one."""

    name: str
    file_name: str | None
    content: bytes


def parse_form(content_type: str, body: bytes) -> Iterator[Part]:
    """The parts of a form. Raises Refusal."""
    boundary = _parameters(content_type, "content-type").get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= _LONGEST_BOUNDARY or not boundary.isascii():
        raise _broken("it has no boundary")
    # Every part begins after a line break and the boundary; the first has none before it.
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), _MOST_PARTS + 2)
    if len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise _broken("it is cut off" if len(parts) <= _MOST_PARTS + 2 else f"it has more than {_MOST_PARTS} parts")
    for part in parts[1:-1]:
        yield _parse_part(part)


def _parse_part(part: bytes) -> Part:
    head, found, content = part.partition(b"\r\n\r\n")
    if not found or len(head) > _LONGEST_HEAD:
        raise _broken("a part has no headers, or too long ones")
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            told = _parameters(value, "content-disposition")
            field, file_name = (told.get_param(key, None, "content-disposition") for key in ("name", "filename"))
            if isinstance(field, str):
                return Part(field, file_name if isinstance(file_name, str) else None, content)
    raise _broken("a part has no name")


def _parameters(value: str, name: str) -> Message:
    message = Message()
    try:
        message[name] = value.strip()
    except ValueError:
        raise _broken("a header has a line break") from None
    return message


def _broken(reason: str) -> Refusal:
    return Refusal(400, "invalid_form", f"The form cannot be read: {reason}.")
