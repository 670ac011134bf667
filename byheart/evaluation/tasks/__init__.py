"""The table of tasks: name -> class. A new task is one file beside this one and one line here."""

from __future__ import annotations

from typing import Any

from byheart.errors import UnknownNameError, UsageError
from byheart.evaluation.task import Task
from byheart.evaluation.tasks.dialogue import Dialogue
from byheart.evaluation.tasks.edit import Edit
from byheart.evaluation.tasks.faithful import Faithful
from byheart.evaluation.tasks.gap import Gap
from byheart.evaluation.tasks.icl import ICL
from byheart.evaluation.tasks.integrity import Integrity
from byheart.evaluation.tasks.longbench import LongBench
from byheart.evaluation.tasks.multitask import Multitask
from byheart.evaluation.tasks.needle import Needle
from byheart.evaluation.tasks.profile import Profile
from byheart.evaluation.tasks.questions import Questions
from byheart.evaluation.tasks.recall import Recall
from byheart.evaluation.tasks.retention import Retention
from byheart.evaluation.tasks.stream import Stream
from byheart.evaluation.tasks.summary import Summary
from byheart.protocol.method import defaults as defaults

_ALL: tuple[type[Task], ...] = (
    *(Gap, Questions, Retention, Integrity, Needle, Recall, Edit, LongBench),
    *(Dialogue, Faithful, ICL, Multitask, Profile, Stream, Summary),
)
BUILT_IN: dict[str, type[Task]] = {task.name: task for task in _ALL}


def find(name: str) -> type[Task]:
    """The class of a task. Raises UnknownNameError with the nearest name and the list."""
    if name not in BUILT_IN:
        raise UnknownNameError("task", name, list(BUILT_IN))
    return BUILT_IN[name]


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
