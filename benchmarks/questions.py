"""What ten questions about one text cost in an evaluation, beside what they must cost at least.

    python benchmarks/questions.py [--rounds 7] [--method full,last-ffn] [--data FILE] [--out FILE]

One item of the task `questions`: a text of some 350 words and ten questions, answered in 16 tokens at most:

    evaluation   what `byheart evaluate` does with it, in batches of its own default
    least        one write, ten answers decoded from what was written and the likelihoods of the ten right ones, each in
                 one batch
    one by one   the text written again for each question, which is then answered alone

The three take turns, round by round; a ratio is the median of the rounds' own. Asking one by one is slow, so it is left
out of two rounds in three. The model is open and the memory made before; nothing is kept on disk. It knows nothing of
how good the answers are.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from byheart import load
from byheart.evaluation.method_spec import Candidate, split_specs
from byheart.evaluation.runner import run
from byheart.evaluation.task import Item
from byheart.evaluation.tasks.questions import Questions
from byheart.generation.likelihood import likelihoods
from byheart.model.loading import DEFAULT, silence
from byheart.provenance import versions
from byheart.session.batch import answer_many
from byheart.session.session import Session

ROOT = Path(__file__).resolve().parent.parent
TEXT, WORDS, TOKENS = ROOT / "examples" / "warsaw.txt", 350, 16
ASKED = (
    "On which river does Warsaw stand?",
    "How many people live in Warsaw?",
    "How far is Warsaw from the Baltic Sea?",
    "What was the name of the fisherman's wife?",
    "Who was the mermaid in love with?",
    "Who owned a village at the site of Mariensztat?",
    "What is a native of Warsaw called?",
    "Where were the first fortified settlements?",
    "Who established the settlement of Warszowa?",
    "When did Warsaw become the capital of the Masovian Duchy?",
)
METHODS = "full,compressed-kv,latent-pool,last-ffn"
MUST = "<= 1.3"
EVALUATION, LEAST, APART = "evaluation", "least", "one by one"


@dataclass(frozen=True)
class Row:
    """One line of the results. ``required`` is what the value must keep to; empty where nothing is asked."""

    name: str
    value: float
    unit: str
    required: str = ""


def records(data: Path | None) -> list[dict[str, Any]]:
    """The example's beginning with ten questions; or, of a data set, its first text that ten are asked about."""
    if data is None:
        text = " ".join(TEXT.read_text(encoding="utf-8").split()[:WORDS])
        return [{"context": text, "question": each, "answers": ["-"]} for each in ASKED]
    texts: dict[str, list[dict[str, Any]]] = {}
    for line in data.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        texts.setdefault(record["context"], []).append(record)
    found = next((each for each in texts.values() if len(each) >= len(ASKED)), None)
    if found is None:
        raise SystemExit(f"{data} has no text with {len(ASKED)} questions.")
    return found[: len(ASKED)]


def least(candidate: Candidate, task: Questions, item: Item) -> list[str]:
    """One write and ten answers in one batch, without what keeps the books."""
    session = emptied(candidate.session)
    session.write(item.texts[0])
    requests = [session.request(question.text, candidate.decoding_for(task)) for question in item.questions]
    answers = answer_many(session.backbone, session.encoder, requests, task.stop)
    right = [[session.encoder.continuation(choice) for choice in question.choices] for question in item.questions]
    likelihoods(session.backbone, [each.prompt for each in requests], [each.reading for each in requests], right)
    return answers


def one_by_one(candidate: Candidate, task: Questions, item: Item) -> list[str]:
    """Everything redone for each question."""
    answers = []
    for question in item.questions:
        session = emptied(candidate.session)
        session.write(item.texts[0])
        answers.append(session.ask(question.text, stop=task.stop, max_tokens=candidate.decoding_for(task).max_tokens))
    return answers


def emptied(session: Session) -> Session:
    """The same memory, with nothing written."""
    twin = session.fork()
    twin.forget()
    return twin


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measured(spec: str, opened: Session, item: Item, rounds: int) -> list[Row]:
    """The rows of one memory."""
    task = Questions()
    candidate = Candidate.of(f"{spec}{';' if ':' in spec else ':'}max_tokens={TOKENS}", opened)
    ways: dict[str, Callable[[], object]] = {
        EVALUATION: lambda: run(task, [item], [candidate]),
        LEAST: lambda: least(candidate, task, item),
        APART: lambda: one_by_one(candidate, task, item),
    }
    ways[EVALUATION](), ways[LEAST]()
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for n in range(rounds):
        for way, call in ways.items():
            if way != APART or n % 3 == 0:
                taken[way].append(seconds(call))
    over = statistics.median(ours / base for ours, base in zip(taken[EVALUATION], taken[LEAST], strict=True))
    saved = statistics.median(apart / ours for apart, ours in zip(taken[APART], taken[EVALUATION][::3], strict=True))
    return [
        Row(f"{spec}: {EVALUATION} / {LEAST}", over, "times the time", MUST),
        Row(f"{spec}: {APART} / {EVALUATION}", saved, "times the speed"),
        *(Row(f"{spec}: {way}", statistics.median(values), "seconds") for way, values in taken.items()),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--method", default=METHODS)
    parser.add_argument("--data", type=Path, help="JSON lines with a text that ten questions are asked about")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "questions.json")
    given = parser.parse_args(argv)
    silence()
    opened = load(given.model, method="nothing", device="cpu")
    (item,) = Questions().items(records(given.data), seed=0)
    rows: list[Row] = []
    for spec in split_specs(given.method):
        for row in measured(spec, opened, item, given.rounds):
            rows.append(row)
            print(
                f"{row.name:44s} {row.value:8.2f} {row.unit:16s} {row.required and f'must {row.required}'}", flush=True
            )
    about = {
        "model": given.model,
        "dtype": str(opened.backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "rounds": given.rounds,
        "text_tokens": len(opened.encoder.continuation(item.texts[0])),
        "questions": len(item.questions),
        "answer_tokens": TOKENS,
        "versions": versions(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
