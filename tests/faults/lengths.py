"""Texts and answers that do not fit the positions of the model."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from random import Random

from byheart import load
from byheart.errors import InputError
from byheart.session.session import Session
from tests.faults.attack import Attack, Try
from tests.faults.forgery import Originals
from tests.samples import OPTIONS

_METHODS = (
    "full",
    "window",
    "retrieval",
    "compressed-kv",
    "latent-pool",
    "every-kth",
    "key-norm",
    "last-ffn",
    "nothing",
)
_LETTERS = "abcdefgh ijklmnop qrstuv wxyz."


class _Heard(logging.Handler):
    """What byheart has logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def outgrow(folder: Path) -> Try:
    """A text that does not fit is refused with its length, and an answer ends at the last position and says so."""
    originals, heard = Originals.make(folder, "nothing"), _Heard()
    logging.getLogger("byheart").addHandler(heard)

    def attempt(number: int, random: Random) -> list[str]:
        method = random.choice(_METHODS)
        options = OPTIONS.get(method, {}) if random.random() < 0.5 else {}
        session = load(originals.backbone, method=method, encoder=originals.encoder, **options)
        for length in random.choices((1, 30, 200, 400, 499, 511, 512, 600, 5000), k=random.randint(1, 4)):
            text = "".join(random.choices(_LETTERS, k=length))
            before = [entry.tokens for entry in session.header.written]
            try:
                session.write(text)
            except InputError as error:
                if [entry.tokens for entry in session.header.written] != before:
                    return [f"{method} kept a text of {length} that it refused"]
                if text.strip() and not _says(str(error), length):
                    return [f"{method} {length}: the length is not said: {error}"]
        heard.lines.clear()
        problems = _answer(session, heard) if session.header.written else []
        return [f"{method} {options} {[entry.tokens for entry in session.header.written]}: {p}" for p in problems]

    return attempt


def _says(message: str, length: int) -> bool:
    """Whether a number in a message is a text's tokens, or those with what was there before and stands around it."""
    numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", message)]
    return any(length <= number <= 4 * 512 + length for number in numbers)


def _answer(session: Session, heard: _Heard) -> list[str]:
    """A token is a character here, so an answer's length is that of its text or more."""
    try:
        answer = "".join(session.stream("Who?", max_tokens=1_500))
    except InputError as error:
        return [] if "room" in str(error) else [f"it was refused with: {error}"]
    positions = session.backbone.positions or 0
    used = session.reading_for("Who?").slots + session.prompt("Who?").shape[-1] + len(answer)
    problems = [f"{used} of {positions} positions were used"] if used > positions + 1 else []
    return problems + ([] if used < positions or heard.lines else ["it was cut without a word"])


ATTACKS = (
    Attack(
        "lengths.outgrow",
        "texts and answers beyond the model's positions: not noticed, no word",
        outgrow,
        150,
        seconds=60,
    ),
)
