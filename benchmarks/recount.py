"""Bring stored rows up to today's rules of intervals and laws, without measuring anything again.

    python benchmarks/recount.py --data eval

Rows of earlier versions do not say over how many clusters their intervals are, see ``byheart.evaluation.statistics``.
How many there were follows from the data, of which a run's hash is stored: its items are made again, and none is asked.
Then a number over too few clusters loses its interval, a share near 0 or 1 gets Wilson's, and what is made of other
rows (means, scores, laws) is made again. Values stay as they were measured, and so do other intervals. Rows that are up
to date stay as they are. The page is written by ``benchmarks/results.py --report`` afterwards.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from byheart.data.records import rows as read_records
from byheart.evaluation.method_spec import MethodSpec, split_budget
from byheart.evaluation.metrics import CONTROLS, DIFFERENCE, LAW
from byheart.evaluation.results import Result, load
from byheart.evaluation.run_folder import digest_of
from byheart.evaluation.statistics import FEWEST_CLUSTERS, is_near_an_end, wilson, wilson_of_clusters
from byheart.evaluation.task import Task
from byheart.evaluation.tasks import build, defaults, find
from byheart.methods import build as build_method
from byheart.testing import tiny_backbone

RESULTS = Path(__file__).resolve().parent / "results"
_WHOLE = 1e-6
# Ends of the names of differences on the same items, which are no shares.
_PAIRED = (DIFFERENCE, *CONTROLS.values())
# Of an interval of 95 %, in standard deviations.
_WIDTH = 3.92


def recount(file: Path, data: Path) -> None:
    """The rows of a run of ``byheart evaluate``, in their order. Raises SystemExit where the data are others."""
    about, rows = load(file)
    seed, found = about.get("seed", 0), []
    for run in about["runs"]:
        task = _task(run)
        members = [row for row in rows if (row.task, row.dataset, row.method) == _key(run)]
        known = all(row.clusters for row in members)
        clusters = {} if known else _count(task, run, members, data, seed)
        counted = [refine(row, clusters.get(_at(row), 0)) for row in _measured(task, members)]
        measured, differences = _apart(counted)
        references = {name: [row for row in found if row.method == name] for name in task.references}
        found += [*measured, *task.summary(measured), *_expected(task, run, measured, references), *differences]
    _save(file, found)


def recount_study(file: Path) -> None:
    """The rows of a study of ``scripts``: an item is one edit or one record, asked with every seed."""
    about, rows = load(file)
    found: list[Result] = []
    for row in rows:
        members = [each for each in found if (each.dataset, each.method) == (row.dataset, row.method)]
        made = build(row.task).summary(members) if row.conditions else []
        found.append(
            next(
                (each for each in made if each.metric == row.metric), _refine_studied(row, about.get("limit") or row.n)
            )
        )
    _save(file, found)


def _refine_studied(row: Result, clusters: int) -> Result:
    """As ``scripts`` would write it: what has no conditions is a difference, what has seeds a mean over them."""
    if "seeds" in row.conditions:
        low, high = wilson(row.value, clusters)
        return replace(row, low=low, high=high, clusters=clusters)
    return refine(row, clusters) if row.conditions else replace(row, clusters=clusters)


def recount_windows(file: Path) -> None:
    """The rows of ``benchmarks/gap.py``, each over windows with one target."""
    _save(file, [refine(row, row.n) for row in load(file)[1]])


def refine(row: Result, clusters: int) -> Result:
    """A row that does not say its clusters, with these and the interval that it would be given today."""
    if row.clusters:
        return row
    row = replace(row, clusters=clusters)
    is_share = 0 <= row.value <= 1 and abs(row.value * row.n - round(row.value * row.n)) < _WHOLE
    if row.clusters < FEWEST_CLUSTERS:
        return replace(row, low=row.value, high=row.value)
    if is_share and not row.metric.endswith(_PAIRED) and is_near_an_end(row.value, row.n):
        low, high = wilson_of_clusters(row.value, row.n, row.clusters, (row.high - row.low) / _WIDTH)
        return replace(row, low=low, high=high)
    return row


def _task(run: Mapping[str, Any]) -> Task:
    """The task of a run, by those of its options that there still are."""
    known = defaults(find(run["task"]))
    return build(run["task"], **{name: value for name, value in run["options"].items() if name in known})


def _key(run: Mapping[str, Any]) -> tuple[str, str, str]:
    return run["task"], run["dataset"], run["method"]


def _at(row: Result) -> str:
    return json.dumps(dict(row.conditions))


def _measured(task: Task, rows: Sequence[Result]) -> list[Result]:
    """Those that are made of no others."""
    made = {LAW, *(row.metric for row in task.summary([row for row in rows if not row.metric.endswith(_PAIRED)]))}
    return [row for row in rows if row.metric not in made]


def _apart(rows: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """Numbers, and differences of them."""
    differences = [row for row in rows if row.metric.endswith(_PAIRED)]
    return [row for row in rows if not row.metric.endswith(_PAIRED)], differences


def _count(task: Task, run: Mapping[str, Any], rows: Sequence[Result], data: Path, seed: int) -> dict[str, int]:
    """Items by the conditions of their questions. Raises SystemExit where they are not those that were asked."""
    if task.asks in ("target", "stream"):
        # An item is one window with one target, and an encoder would be needed to make it.
        return {_at(row): row.n for row in rows}
    records = list(read_records(str(data / f"{run['dataset']}.jsonl")))
    if digest_of(records) != run["records"]:
        raise SystemExit(f"{data / run['dataset']}.jsonl holds other records than those that were measured.")
    last = run["skip"] + run["limit"] if run["limit"] else None
    items = list(islice(task.items(records, seed), run["skip"], last))
    asked = Counter(json.dumps(dict(question.conditions)) for item in items for question in item.questions)
    for row in _measured(task, rows):
        if row.n > asked[_at(row)]:
            raise SystemExit(f"{_key(run)}: {row.n} answers, of {asked[_at(row)]} questions at {_at(row)}.")
    kinds = [{json.dumps(dict(question.conditions)) for question in item.questions} for item in items]
    return {at: sum(at in kind for kind in kinds) for at in asked}


def _expected(
    task: Task, run: Mapping[str, Any], rows: Sequence[Result], references: Mapping[str, Sequence[Result]]
) -> list[Result]:
    """What the method's rule lets expect, by a method of the same options over a tiny model."""
    if type(task).expect is Task.expect:
        return []
    spec = MethodSpec.of(split_budget(run["method"])[0], 0, 1)
    if spec.options.get("control"):
        return []
    known = build_method(spec.name, tiny_backbone()).options()
    options = {name: value for name, value in run["resolved"].items() if name in known and name != "rank"}
    return task.expect(rows, references, build_method(spec.name, tiny_backbone(), **options).share_left)


def _save(file: Path, rows: Sequence[Result]) -> None:
    """The rows in place of the stored ones; what the file says of itself stays."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored["rows"] = [row.flat() for row in rows]
    file.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Recount every result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of JSON lines, as for results.py")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    for file in sorted(given.results.glob("tasks/*/rows.json")):
        recount(file, given.data)
    for file in sorted(given.results.glob("*_study.json")):
        recount_study(file)
    for file in sorted(given.results.glob("gap*.json")):
        recount_windows(file)


if __name__ == "__main__":
    main()
