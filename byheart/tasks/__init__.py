"""The table of tasks: name -> class. A new task is one file beside this one and one line here."""

from __future__ import annotations

import inspect
from typing import Any

from byheart.errors import UnknownNameError, UsageError
from byheart.task import Task
from byheart.tasks.dialogue import Dialogue
from byheart.tasks.edit import Edit
from byheart.tasks.faithful import Faithful
from byheart.tasks.icl import ICL
from byheart.tasks.integrity import Integrity
from byheart.tasks.longbench import LongBench
from byheart.tasks.multitask import Multitask
from byheart.tasks.needle import Needle
from byheart.tasks.profile import Profile
from byheart.tasks.questions import Questions
from byheart.tasks.recall import Recall
from byheart.tasks.retention import Retention
from byheart.tasks.stream import Stream
from byheart.tasks.summary import Summary

_ALL: tuple[type[Task], ...] = (
    *(Questions, Retention, Integrity, Needle, Recall, Edit, LongBench),
    *(Dialogue, Faithful, ICL, Multitask, Profile, Stream, Summary),
)
BUILT_IN: dict[str, type[Task]] = {task.name: task for task in _ALL}


def find(name: str) -> type[Task]:
    """The class of a task. Raises UnknownNameError with the nearest name and the list."""
    if name not in BUILT_IN:
        raise UnknownNameError("task", name, list(BUILT_IN))
    return BUILT_IN[name]


def defaults(kind: type[Task]) -> dict[str, Any]:
    """The options of a task and their defaults."""
    return {p.name: p.default for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY}


def build(name: str, **options: Any) -> Task:
    """A task by name with its options. Raises UnknownNameError or UsageError."""
    kind = find(name)
    known = defaults(kind)
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {name}", option, known)
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"task '{name}' does not take these options: {error}.") from error
