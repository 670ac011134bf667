"""Any task of lm-evaluation-harness, answered by a model that reads a memory first.

https://github.com/EleutherAI/lm-evaluation-harness asks its Hugging Face model for likelihoods and for answers. Here
that model runs with a reading in front of every row; tokenizing, batching, stop strings and metrics stay lm-eval's.
A reading of nothing changes no number. It does not know what a task is about.

What the model attends to when a request has T tokens and the memory M slots, padding as lm-eval puts it:

    likelihood (padded right)    M slots | tokens  | padding     a row's first token is at position M
    answer     (padded left)     M slots | padding | tokens      here too: padding has no position
"""

from __future__ import annotations

import copy
import difflib
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.errors import InputError, UsageError
from byheart.evaluation.results import Result
from byheart.evaluation.statistics import FEWEST_CLUSTERS
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.reading import Reading
from byheart.session.batch import write_many
from byheart.session.session import Session

_TASK = "lm-eval"
_NO_FILTER = "none"
# lm-eval's own number, 100,000, is for its tables; the metrics that need draws run on all cores at each.
_DRAWS = 1000


def keep(session: Session, texts: Sequence[str] = ()) -> Session:
    """A session that holds ``texts`` after what ``session`` holds, which stays as it was.

    They are written as they are, without the chat template: a context of lm-eval then continues them as if they
    preceded it. Raises InputError.
    """
    held = session.fork()
    for text in texts:
        write_many([held], [text], use_chat_template=False)
    return held


def language_model(session: Session, kept: Session | None = None, *, batch: int = 8) -> Any:
    """The session's model as lm-eval drives it, with what it keeps in front: an ``lm_eval.api.model.LM``.

    Args:
        kept: from ``keep``, where texts were written for this measurement alone.
        batch: requests at once.

    Raises UsageError where lm-eval is not installed, InputError where the memory leaves no room for a request.
    """
    lm = reader_class()(kept or session, batch)
    if lm.max_length < 2:
        slots = lm.reading.slots
        raise InputError(
            f"The memory's {slots} slots leave no room for a request: the model reads at most "
            f"{slots + lm.max_length}. Write less, or use a memory of fixed size."
        )
    return lm


@functools.cache
def reader_class() -> type[Any]:
    """The class, defined only when it is needed: lm-eval may be absent."""
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise UsageError("lm-evaluation-harness is not installed: pip install 'byheart[lm-eval]'") from error

    class Reader(HFLM):  # type: ignore[misc]
        """lm-eval's Hugging Face model after a reading; nothing of it is changed but what a forward pass sees."""

        def __init__(self, session: Session, batch: int) -> None:
            self.backbone, self.reading = session.backbone, session.reading
            # A request that continues written text has no first token of its own.
            bos = False if session.method.text_format == "turn" and session.header.written else None
            tokenizer = copy.deepcopy(session.encoder.tokenizer)
            super().__init__(self.backbone.model, tokenizer=tokenizer, batch_size=batch, add_bos_token=bos)

        @property
        def max_length(self) -> int:
            longest: int = super().max_length
            return longest - self.reading.slots

        def _model_call(self, inps: Int[Tensor, "B T"], *_: Any, **__: Any) -> Float[Tensor, "B T V"]:
            with torch.no_grad(), _reading(self.backbone, self.reading, *inps.shape) as cache:
                logits: Tensor = self.model(inps, **{self.backbone.anatomy.cache_argument: cache}).logits
            return logits

        def _model_generate(
            self, context: Int[Tensor, "B T"], max_length: int, *, attention_mask: Tensor, **options: Any
        ) -> Int[Tensor, "B N"]:
            # Stock ``generate`` counts the cache's slots as input, and runs only what comes after them.
            held, pad = self.reading.slots, self.tokenizer.pad_token_id
            rows, room = len(context) * options.get("num_beams", 1), max_length - context.shape[1]
            with _reading(self.backbone, self.reading, rows, context.shape[1] + room) as cache:
                tokens: Tensor = super()._model_generate(
                    _pad_left(context, held, pad),
                    max_length + held,
                    attention_mask=_pad_left(attention_mask, held, 1),
                    **{self.backbone.anatomy.cache_argument: cache},
                    **options,
                )
            return tokens[:, held:]

    return Reader


def _pad_left(rows: Int[Tensor, "B T"], width: int, value: int) -> Int[Tensor, "B N"]:
    """``rows`` after ``width`` more columns of one value."""
    return torch.nn.functional.pad(rows, (width, 0), value=value)


@contextmanager
def _reading(backbone: Backbone, reading: Reading, rows: int, room: int) -> Iterator[PrefixCache]:
    """Before: the model as it is. Inside: a cache with the prefix for every row, and the deltas. After: no deltas."""
    with ExitStack() as stack:
        # One delta shared by all rows costs less than one for each.
        stack.enter_context(backbone.deltas([reading.deltas]))
        yield stack.enter_context(backbone.reading([replace(reading, deltas={})] * rows, room=room))


# ---- measuring ----


def measure(
    session: Session,
    tasks: Sequence[str],
    *,
    method: str = "",
    texts: Sequence[str] = (),
    limit: int | None = None,
    fewshot: int | None = None,
    include: str | Path | None = None,
    batch: int = 8,
) -> list[Result]:
    """A row for every metric of every task, answered with what ``session`` keeps in front.

    Args:
        tasks: names, groups or patterns that lm-eval knows, or files of tasks.
        method: what the rows call the method; its name without it.
        texts: written first, for this measurement alone; see ``keep``.
        limit: documents of each task, at most.
        fewshot: solved examples in front of each request, instead of the task's own number.
        include: a folder with more tasks.
        batch: requests at once.

    Raises UsageError for a task that is not known, InputError where lm-eval refuses to run one.
    """
    # Says what to install before anything is written.
    reader_class()
    from lm_eval import simple_evaluate

    known, names = _find_tasks(tasks, include)
    start, kept = time.monotonic(), keep(session, texts)
    seconds = time.monotonic() - start if texts else 0.0
    lm = language_model(session, kept, batch=batch)
    settings = {"num_fewshot": fewshot, "limit": limit, "bootstrap_iters": _DRAWS, "log_samples": False}
    try:
        found = simple_evaluate(lm, tasks=names, task_manager=known, batch_size=batch, **settings)
    except (AssertionError, ValueError) as error:
        raise InputError(f"lm-eval could not run {', '.join(names)}: {error}") from error
    costs = {"method": method or session.method.name, "bytes": kept.bytes, "seconds": seconds}
    better = found.get("higher_is_better", {})
    return [
        row for name, metrics in found["results"].items() for row in to_rows(name, metrics, better.get(name, {}), costs)
    ]


def _find_tasks(tasks: Sequence[str], include: str | Path | None) -> tuple[Any, list[str]]:
    """Where lm-eval finds the tasks, and the names of all that match. Raises UsageError."""
    from lm_eval.tasks import TaskManager

    if include is not None and not Path(include).is_dir():
        raise UsageError(f"There is no folder of tasks '{include}'.")
    # lm-eval looks through its own thousands of files for a quarter of a minute; the user's own do not need them.
    users = TaskManager(include_path=include, include_defaults=False)
    enough = all(_is_file(task) or task in users.all_subtasks for task in tasks)
    known = users if enough else TaskManager(include_path=include)
    names: list[str] = []
    for task in tasks:
        matches = [task] if _is_file(task) else known.match_tasks([task])
        if not matches:
            near = difflib.get_close_matches(task, known.all_tasks, n=1)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise UsageError(f"There is no task '{task}'. {hint}`lm-eval ls tasks` lists lm-eval's own.")
        names += [name for name in matches if name not in names]
    if not names:
        raise UsageError("There are no tasks to run; name one or more.")
    return known, names


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml")) and Path(task).is_file()


def to_rows(
    name: str, metrics: Mapping[str, Any], better: Mapping[str, bool | None], costs: Mapping[str, Any]
) -> Iterator[Result]:
    """Rows of one task's or group's metrics, which are called ``metric,filter`` and ``metric_stderr,filter``."""
    for key, value in metrics.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = metrics.get(f"{metric}_stderr,{filter_name}")
        n = int(metrics.get("sample_count", {}).get(key, metrics["sample_len"]))
        # Where lm-eval has no standard error it says N/A; then, and over few documents, there is no interval.
        known = error if isinstance(error, (int, float)) and math.isfinite(error) else 0.0
        spread = 1.96 * known if n >= FEWEST_CLUSTERS else 0.0
        yield Result(
            task=_TASK,
            dataset=name,
            metric=metric if filter_name == _NO_FILTER else key,
            value=float(value),
            low=float(value - spread),
            high=float(value + spread),
            n=n,
            clusters=n,
            higher_is_better=better.get(metric, True),
            **costs,
        )
