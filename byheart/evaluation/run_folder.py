"""The folder of a run of evaluations: what decides its answers, the answers themselves, and the rows made of them.

    OUT/run.json                             what decides all answers, and which data each data set's name stands for
    OUT/answers/TASK/DATASET/METHOD.jsonl    a line per question; all that decides a method's answers is in the name
    OUT/FOLDER/METHOD/FILE.jsonl             the same as a task's official scorer reads them, of tasks that have one
    OUT/rows.json                            the numbers, see ``Result``, and under ``runs`` how each was measured

It asks nothing and judges nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from byheart.errors import UsageError
from byheart.evaluation.results import Result, load, save
from byheart.evaluation.task import Item
from byheart.provenance import versions

_FORMAT = 3
_KEY = ("task", "dataset", "method")
Parts: TypeAlias = Mapping[str, tuple[float, float]]
"""By metric, or ``metric/class``, a total and its weight."""


@dataclass(frozen=True)
class Outcome:
    """One question of one item: the words that answered it, its share of each metric, and what the item cost.

    ``digest`` tells one item from another of the same number; ``tokens`` were written before the question; ``control``
    has the parts by another item's memory, where that was measured. What reading cost is None in the answers of an
    older byheart, and where no words were generated, the first token.
    """

    item: int
    digest: str
    question: int
    conditions: Mapping[str, Any]
    text: str
    parts: Parts
    bytes: int
    tokens: int
    write_seconds: float
    answer_seconds: float
    control: Parts = field(default_factory=dict)
    reading_bytes: int | None = None
    reread_tokens: float | None = None
    first_token_seconds: float | None = None

    def moved(self, first: int, weight: float) -> Outcome:
        """The same as one of the items from ``first`` on, of which it counts with another weight."""
        scaled = [
            {name: (total * weight, share * weight) for name, (total, share) in parts.items()}
            for parts in (self.parts, self.control)
        ]
        return replace(self, item=first + self.item, parts=scaled[0], control=scaled[1])


class RunFolder:
    """A run's folder, new or resumed. Raises UsageError where it holds a run of other settings."""

    def __init__(self, path: str | Path, **settings: Any) -> None:
        self.path = Path(path)
        self.settings = {"format": _FORMAT, "byheart": versions()["byheart"], **settings}
        file = self.path / "run.json"
        stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else dict(self.settings)
        changed = [name for name, value in self.settings.items() if stored.get(name) != value]
        if changed:
            pairs = ", ".join(f"{name} {stored.get(name)} (now {self.settings[name]})" for name in changed)
            raise UsageError(f"'{self.path}' holds a run of other settings: {pairs}. Give another --out, or remove it.")
        self._data: dict[str, str] = stored.get("data", {})
        self._save()

    def _save(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self.settings, "data": self._data}, indent=1)
        (self.path / "run.json").write_text(text + "\n", encoding="utf-8")

    def named(self, name: str, source: str, records: str) -> str:
        """What a data set is called here: its name, with that of its folder before it where another one has the name.

        Args:
            records: the digest of what they hold.
        """
        folder = Path(source).expanduser().resolve().parent.name
        names = name, f"{folder}-{name}", f"{name}-{records}"
        free = next(name for name in names if self._data.get(name, records) == records)
        self._data[free] = records
        self._save()
        return free

    def answers(self, task: str, dataset: str, method: str, *decides: Any) -> Path:
        """The file of a method's answers: a readable name, and a digest of all that decides them."""
        return self.path / "answers" / task / dataset / file_name(method, *decides)

    def keep_official(self, method: str, lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write a method's lines by ``FOLDER/FILE``, in place of those that are there."""
        for name, found in lines.items():
            folder, _, file = name.rpartition("/")
            path = self.path / folder / _plain(method) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
            path.write_text(text, encoding="utf-8")

    def keep(self, rows: Sequence[Result], run: Mapping[str, Any], **about: Any) -> None:
        """Put the rows of one run, and how it was measured, in place of those of its task, data set and method."""
        file = self.path / "rows.json"
        stored, kept = load(file) if file.exists() else ({}, [])
        key = [run[name] for name in _KEY]
        others = [other for other in stored.get("runs", []) if [other[name] for name in _KEY] != key]
        left = [row for row in kept if [row.task, row.dataset, row.method] != key]
        # The options of a task or a method may be of any kind.
        plain = json.loads(json.dumps(run, default=str))
        save(file, [*left, *rows], **about, runs=[*others, plain])


def file_name(method: str, *decides: Any) -> str:
    """What a file of a method's answers is called: readable, and another one wherever something else decides them."""
    return f"{_plain(method)}-{digest_of([method, *decides])}.jsonl"


def _plain(method: str) -> str:
    """A method's name as that of a file."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", method)[:60]


def digest_of(parts: Iterable[Any]) -> str:
    """A short name for values, by their ``repr``.

    A field at its default does not count, so that a later release may have more fields and still resume old runs; nor
    does one that values are not compared by.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(_without_defaults(part)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:12]


def _without_defaults(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_defaults(part) for part in value]
    if not is_dataclass(value):
        return value
    defaults = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(value) if f.compare
    }
    parts = {name: part for name, part in vars(value).items() if name in defaults}
    pairs = [(name, _without_defaults(part)) for name, part in parts.items() if part != defaults[name]]
    return [type(value).__name__, *pairs]


def known(file: Path, items: Sequence[Item], digests: Sequence[str]) -> dict[int, list[Outcome]]:
    """Outcomes by item, of items that are whole and still the same; a line that was cut short is left out."""
    if not file.exists():
        return {}
    found: dict[int, dict[int, Outcome]] = {}
    # splitlines() would also cut at separators that JSON strings may hold.
    for line in file.read_text(encoding="utf-8").split("\n"):
        try:
            stored = json.loads(line)
            parts = {name: _pairs(stored[name]) for name in ("parts", "control")}
            outcome = Outcome(**{**stored, **parts})
        except (ValueError, TypeError, KeyError):
            continue
        n = outcome.item
        if n < len(items) and outcome.digest == digests[n]:
            found.setdefault(n, {})[outcome.question] = outcome
    return {n: list(own.values()) for n, own in found.items() if len(own) == len(items[n].questions)}


def _pairs(parts: Mapping[str, Sequence[float]]) -> Parts:
    return {name: (total, weight) for name, (total, weight) in parts.items()}


def append(file: Path, outcomes: Sequence[Outcome]) -> None:
    """Add outcomes to a file; what an interrupted run left of a line does not run into the next."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(asdict(outcome), ensure_ascii=False) + "\n" for outcome in outcomes)
    torn = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as lines:
        lines.write("\n" * torn + text)
