"""A method to measure, as it is typed: its name, options, decoding and bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from byheart.errors import UsageError
from byheart.evaluation.task import Task
from byheart.generation.decoding import Decoding
from byheart.methods.budget import options_for, parse_bytes
from byheart.session.opening import load
from byheart.session.session import Session

DECODED = {each.name for each in fields(Decoding)}


@dataclass(frozen=True)
class Candidate:
    """A memory as it was asked for: its session, how its answers are decoded, and the bytes it may keep; 0 is any."""

    said: str
    session: Session
    decoding: Mapping[str, Any]
    budget: int = 0

    @classmethod
    def of(cls, said: str, opened: Session, *, tokens: int = 0) -> Candidate:
        """``NAME:key=value@64KB``: a key of ``Decoding`` is how to decode, others are the memory's options.

        Args:
            tokens: of the longest text; options that are not given are chosen so that it fits the bytes behind ``@``.
        """
        plain, budget = budget_of(said)
        choice = MethodSpec.of(plain, 0, 1)
        how = {key: value for key, value in choice.options.items() if key in DECODED}
        options = {key: value for key, value in choice.options.items() if key not in DECODED}
        if budget and tokens:
            options = {**options_for(choice.name, opened.backbone, budget, tokens), **options}
        made = load(opened.backbone, method=choice.name, encoder=opened.encoder, **options)
        return cls(said, made, how, budget)

    def how(self, task: Task, max_tokens: int | None = None) -> Decoding:
        """How a task's answers are decoded, a question's own ``max_tokens`` before the task's. Raises UsageError."""
        if task.asks == "choices" and self.decoding:
            raise UsageError(
                f"{task.name} measures likelihoods: '{self.said}' has no {', '.join(self.decoding)} there."
            )
        return Decoding(**{"max_tokens": max_tokens or task.max_tokens, **self.decoding})


def budget_of(said: str) -> tuple[str, int]:
    """A memory without its number of bytes, and that number; 0 where none is given. Raises UsageError."""
    plain, at, size = said.rpartition("@")
    return (plain, parse_bytes(size)) if at and not Path(said).exists() else (said, 0)


def group_by_state(ones: Sequence[Candidate]) -> list[list[Candidate]]:
    """Memories that keep the same and differ in decoding alone, together; in the order they came."""
    groups: dict[str, list[Candidate]] = {}
    for one in ones:
        header = one.session.header
        kept = header.method, sorted(header.options.items()), header.adapter, one.budget
        groups.setdefault(repr(kept), []).append(one)
    return list(groups.values())


_ASKED = 'NAME or NAME:key=value;key=value, such as "window:sinks=1;recent=15"'


class MethodSpec(NamedTuple):
    """A memory to measure: a method's name or a folder, and its options."""

    name: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, said: str, place: int, places: int) -> MethodSpec:
        """Read ``NAME:key=value;key=value``; of several values, ``4/16/64``, the one of this place. Raises UsageError.

        A value is JSON where it can be.
        """
        name, _, rest = said.partition(":")
        if "=" not in rest or Path(said).exists():
            return cls(said, {})
        pairs = [pair.partition("=") for pair in rest.split(";")]
        if not name or not all(key and value for key, _, value in pairs):
            raise UsageError(f"A memory is given as {_ASKED}; it is '{said}'.")
        options: dict[str, Any] = {}
        for key, _, value in pairs:
            each = value.split("/")
            if len(each) not in (1, places):
                raise UsageError(f"{key} of '{said}' has {len(each)} values for {places} lengths of history.")
            options[key.replace("-", "_")] = _value(each[place if len(each) > 1 else 0])
        return cls(name, options)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def choices(said: str) -> list[str]:
    """The memories of ``A,B:key=value``, cut at commas outside brackets."""
    return [each.strip() for each in re.split(r",(?![^\[]*\])", said) if each.strip()]
