"""Every error that byheart raises on purpose: what is wrong, the value given, what to do.

ByheartError
├── UsageError            an argument that cannot be used (exit code 2 on the command line)
│   ├── UnknownNameError  a name that is not in a table; gives the nearest one and the list
│   └── BudgetError       a number of bytes that is less than a method needs; gives the minimum
├── InputError            text that cannot be written or asked
├── ModelError            a model that cannot be opened
│   └── UnsupportedModelError  a model whose layers byheart cannot drive; names the layer
├── CheckpointError       a published checkpoint with missing, unexpected or wrong-shaped tensors
├── StateError            a state file that cannot be used
│   ├── CorruptStateError    truncated, tampered with, or not a state at all
│   └── StateMismatchError   made by another model, method, option or format version
├── StoreError            a named memory that exists, does not exist, or has an invalid name
│   ├── MissingError      no such memory or version
│   ├── ConflictError     it was changed meanwhile, or its name is taken
│   ├── QuotaError        more memories or bytes than a tenant may have
│   └── UnavailableError  a catalogue, an object store or a server does not answer; try again later
├── BusyError             an engine that has too much to do; try again later
├── OutputError           what was done cannot be said: standard output cannot be written
└── TrainingError         training that cannot continue; its last checkpoint is intact
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ByheartError(Exception):
    """The root: catch this to catch all that byheart raises on purpose."""


class UsageError(ByheartError):
    """An argument that cannot be used."""


class UnknownNameError(UsageError):
    """A name that is not in a table."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        super().__init__(f"There is no {kind} '{name}'.{hint} There are: {', '.join(names)}.")


class BudgetError(UsageError):
    """A number of bytes that is less than a method needs."""

    def __init__(self, method: str, budget: int, least: int) -> None:
        super().__init__(
            f"A budget of {budget} bytes is too small for '{method}', which needs at least {least}; "
            "give it more, or take another method."
        )


class InputError(ByheartError):
    """Text that cannot be written or asked."""


class ModelError(ByheartError):
    """A model that cannot be opened."""


class UnsupportedModelError(ModelError):
    """A model whose layers byheart cannot drive."""


class CheckpointError(ByheartError):
    """A published checkpoint whose tensors are missing, unexpected or of the wrong shape."""


class StateError(ByheartError):
    """A state file that cannot be used."""


class CorruptStateError(StateError):
    """A file that is truncated, tampered with, or not a state at all."""


class StateMismatchError(StateError):
    """A state made by another model, method, option or format version."""


class StoreError(ByheartError):
    """A named memory that exists, does not exist, or has an invalid name."""


class MissingError(StoreError):
    """No such memory, or no such version of it."""


class ConflictError(StoreError):
    """A memory that was changed meanwhile, or a name that is taken."""


class QuotaError(StoreError):
    """More memories or bytes than a tenant may have."""


class UnavailableError(StoreError):
    """A catalogue, an object store or a server that does not answer."""


class BusyError(ByheartError):
    """An engine or a server that has too much to do; ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutputError(ByheartError):
    """What was done cannot be said: standard output cannot be written."""


class TrainingError(ByheartError):
    """Training that cannot continue; its last checkpoint is intact."""


def require_positive(**values: int | float) -> None:
    """Raise UsageError for any value that is not above zero."""
    for name, value in values.items():
        if value <= 0:
            raise UsageError(f"{name} must be above 0; it is {value}.")


def require_not_negative(**values: int | float) -> None:
    """Raise UsageError for any value that is below zero."""
    for name, value in values.items():
        if value < 0:
            raise UsageError(f"{name} must be 0 or more; it is {value}.")


def require_one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise UsageError for a value that is none of those allowed."""
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}; it is '{value}'.")
