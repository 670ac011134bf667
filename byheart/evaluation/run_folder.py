"""The folder of a run of evaluations: what decides its answers, the answers themselves, and the rows made of them.

    OUT/run.json                             what decides all answers, and which data each data set's name stands for
    OUT/answers/TASK/DATASET/MEMORY.jsonl    one line a question; the name knows all that decides this memory's answers
    OUT/rows.json                            the numbers, see ``rows.Row``, and under ``runs`` how each was measured

It asks nothing and judges nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from byheart.errors import UsageError
from byheart.evaluation.results import Result, load, save
from byheart.evaluation.task import Item
from byheart.provenance import versions

_FORMAT = 2
_TOLD_APART = ("task", "dataset", "method")


@dataclass(frozen=True)
class Outcome:
    """One question of one item: the words that answered it, its share of each metric, and what the item cost.

    ``digest`` tells one item from another of the same number.
    """

    item: int
    digest: str
    question: int
    at: Mapping[str, Any]
    text: str
    parts: Mapping[str, tuple[float, float]]
    bytes: int
    write_seconds: float
    answer_seconds: float


class RunFolder:
    """A run's folder, made or gone on with. Raises UsageError where it holds a run of other settings."""

    def __init__(self, path: str | Path, **settings: Any) -> None:
        self.path = Path(path)
        self.settings = {"format": _FORMAT, "byheart": versions()["byheart"], **settings}
        file = self.path / "run.json"
        stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else dict(self.settings)
        changed = [name for name, value in self.settings.items() if stored.get(name) != value]
        if changed:
            told = ", ".join(f"{name} {stored.get(name)} (now {self.settings[name]})" for name in changed)
            raise UsageError(f"'{self.path}' holds a run of other settings: {told}. Give another --out, or remove it.")
        self._data: dict[str, str] = stored.get("data", {})
        self._save()

    def _save(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self.settings, "data": self._data}, indent=1)
        (self.path / "run.json").write_text(text + "\n", encoding="utf-8")

    def named(self, name: str, source: str, records: str) -> str:
        """What data are called here: by their name, or with their folder's before it where other data have that.

        Args:
            records: the digest of what they hold.
        """
        folder = Path(source).expanduser().resolve().parent.name
        names = name, f"{folder}-{name}", f"{name}-{records}"
        called = next(one for one in names if self._data.get(one, records) == records)
        self._data[called] = records
        self._save()
        return called

    def answers(self, task: str, dataset: str, method: str, *decides: Any) -> Path:
        """The file of a memory's answers: readable, and another one where anything that decides them is another."""
        digest = digest_of([method, *decides])
        plain = re.sub(r"[^A-Za-z0-9.=-]+", "_", method)[:60]
        return self.path / "answers" / task / dataset / f"{plain}-{digest}.jsonl"

    def keep(self, rows: Sequence[Result], run: Mapping[str, Any], **about: Any) -> None:
        """Put the rows of one run, and how it was measured, in the place of those of its task, data set and memory."""
        file = self.path / "rows.json"
        stored, kept = load(file) if file.exists() else ({}, [])
        ours = [run[name] for name in _TOLD_APART]
        others = [one for one in stored.get("runs", []) if [one[name] for name in _TOLD_APART] != ours]
        left = [row for row in kept if [row.task, row.dataset, row.method] != ours]
        # A task's or a memory's options may be of any kind.
        plain = json.loads(json.dumps(run, default=str))
        save(file, [*left, *rows], **about, runs=[*others, plain])


def digest_of(parts: Iterable[Any]) -> str:
    """A short name for values, by their ``repr``.

    A field that has its default does not count, so that a later release may have more fields and go on with old runs.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(_told(part)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:12]


def _told(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    if not is_dataclass(value):
        return value
    defaults = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory() for each in fields(value)
    }
    own = [(name, _told(each)) for name, each in vars(value).items() if each != defaults[name]]
    return [type(value).__name__, *own]


def known(file: Path, items: Sequence[Item], digests: Sequence[str]) -> dict[int, list[Outcome]]:
    """Outcomes by item, of items that are whole and still the same; a line that was cut short is left out."""
    if not file.exists():
        return {}
    found: dict[int, dict[int, Outcome]] = {}
    # splitlines() would also cut at separators that JSON strings may hold.
    for line in file.read_text(encoding="utf-8").split("\n"):
        try:
            stored = json.loads(line)
            parts = {name: (total, weight) for name, (total, weight) in stored["parts"].items()}
            outcome = Outcome(**{**stored, "parts": parts})
        except (ValueError, TypeError, KeyError):
            continue
        n = outcome.item
        if n < len(items) and outcome.digest == digests[n]:
            found.setdefault(n, {})[outcome.question] = outcome
    return {n: list(each.values()) for n, each in found.items() if len(each) == len(items[n].questions)}


def append(file: Path, outcomes: Sequence[Outcome]) -> None:
    """Put outcomes behind those that are there; what an interrupted run left of a line does not run into the next."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(asdict(outcome), ensure_ascii=False) + "\n" for outcome in outcomes)
    torn = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as lines:
        lines.write("\n" * torn + text)
