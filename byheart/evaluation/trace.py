"""What one text takes to write and to ask about, step by step, as FastMem's profile mode shows it (arXiv 2406.16069).

    OUT/METHOD.trace.json       every operation, for https://ui.perfetto.dev
    OUT/METHOD.memory.pickle    on a GPU every allocation, for https://docs.pytorch.org/memory_viz

Times are those of a run before, because recording slows down what it records. The GPU's part was not run on real
hardware.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch
from torch.profiler import ProfilerActivity, profile

from byheart.data.records import rows as read_records
from byheart.errors import InputError, UsageError
from byheart.evaluation.method_spec import Candidate
from byheart.evaluation.run_folder import file_name
from byheart.evaluation.task import Item, Task
from byheart.generation.generate import Generation
from byheart.model.loading import DEFAULT
from byheart.session.batch import write_many
from byheart.session.opening import load
from byheart.text.encoder import ChatEncoder

LEAST_TOKENS = 2500
"""FastMem's: the first text that is as long."""


@dataclass(frozen=True)
class Trace:
    """What one method took: seconds, the peak of a GPU's memory in bytes, None elsewhere, and where the trace is.

    ``token_seconds`` is the mean over the tokens of the answer after the first; 0 where there is no other.
    """

    method: str
    tokens: int
    write_seconds: float
    first_token_seconds: float
    token_seconds: float
    peak_bytes: int | None
    file: str


def trace(
    task: Task,
    data: str,
    methods: Sequence[str],
    out: str | Path,
    *,
    tokens: int = LEAST_TOKENS,
    model: str = DEFAULT,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    system_prompt: bool = True,
) -> list[Trace]:
    """Write the first item with so many tokens, ask its first question, and record both, for each method.

    Raises InputError where no item is as long, UsageError for a task without words, and what ``evaluate`` raises.
    """
    if task.asks != "words":
        raise UsageError(f"{task.name} measures likelihoods; take a task with answers in words, such as faithful.")
    opened = load(model, method="nothing", dtype=dtype, device=device, system_prompt=system_prompt)
    (part, *_), records = task.split(opened.encoder), list(read_records(task.sources.get(data, data)))
    item = _first_long(list(part.items(records, seed)), tokens, opened.encoder, data)
    return [_trace(part, item, Candidate.of(spec, opened), Path(out)) for spec in methods]


def _first_long(items: Sequence[Item], tokens: int, encoder: ChatEncoder, data: str) -> Item:
    longest = 0
    for item in items:
        length = sum(len(encoder.continuation(text) if isinstance(text, str) else text) for text in item.texts)
        if length >= tokens:
            return item
        longest = max(longest, length)
    raise InputError(f"No text of '{data}' has {tokens:,} tokens; the longest has {longest:,}. Ask for fewer.")


def _trace(task: Task, item: Item, candidate: Candidate, folder: Path) -> Trace:
    """The times of one run, and the recording of another."""
    file = folder / f"{Path(file_name(candidate.spec)).stem}.trace.json"
    folder.mkdir(parents=True, exist_ok=True)
    device = candidate.session.backbone.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    written, moments = _run(task, item, candidate)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    with _recorded(device, file):
        _run(task, item, candidate)
    write, first, *later = [after - before for before, after in pairwise(moments)]
    return Trace(candidate.spec, written, write, first, fmean(later) if later else 0.0, peak, str(file))


def _run(task: Task, item: Item, candidate: Candidate) -> tuple[int, list[float]]:
    """The tokens that are written, and the moments before, after writing, and after each token of the answer."""
    session, question = candidate.session_for(item).fork(), item.questions[0]
    device, moments = session.backbone.device, list[float]()

    def note() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        moments.append(time.perf_counter())

    note()
    for text in item.texts:
        if not isinstance(text, str):
            raise UsageError(f"{task.name} writes tokens, not texts, and cannot be traced.")
        write_many([session], [text], use_chat_template=item.use_chat_template)
    note()
    decoding = candidate.decoding_for(task, question.max_tokens)
    request = session.request(
        question.prompt,
        decoding,
        use_chat_template=question.use_chat_template,
        answer_prefix=question.answer_prefix,
        unconditional=question.unconditional,
        search=question.text,
    )
    generation = Generation(session.backbone)
    generation.add([request])
    while generation.running:
        generation.step()
        note()
    generation.close()
    return sum(entry.tokens for entry in session.header.written), moments


@contextmanager
def _recorded(device: torch.device, file: Path) -> Iterator[None]:
    """Before: nothing is recorded. Inside: every operation, and on a GPU every allocation. After: both are in files."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    if on_gpu:
        torch.cuda.memory._record_memory_history()
    try:
        with profile(activities=activities, profile_memory=True) as profiler:
            yield
        profiler.export_chrome_trace(str(file))
        if on_gpu:
            memory = file.with_name(file.name.replace(".trace.json", ".memory.pickle"))
            torch.cuda.memory._dump_snapshot(str(memory))  # type: ignore[no-untyped-call]
    finally:
        if on_gpu:
            torch.cuda.memory._record_memory_history(enabled=None)
