"""How much of the gap between no text and full text each memory closes, beside what needs no training.

    python benchmarks/gap.py [MEMORY ...] [--data FOLDER] [--windows 64] [--history 1,4,16] [--between 0,64]
    python benchmarks/gap.py --table

Memories are given as to `byheart evaluate gap --method`. Rows go into benchmarks/results/gap.json after each group of
data sets; a later run of the same settings adds its memories to those that are there. Then
docs/explanation/measures.md gets its tables, between the comments `gap` and `/gap`, or those of
results/gap-lengths.json; with --table nothing is measured. That page says what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gap.json"
PAGE = ROOT / "docs" / "explanation" / "measures.md"
MARKERS = {RESULTS: "gap", RESULTS.with_name("gap-lengths.json"): "gap-lengths"}
GROUPS = {
    "continuation": ("novels", "wikitext2"),
    "dialogue": ("personachat", "dailydialog"),
    "answers": ("squad", "fairytaleqa", "nq"),
}
ROWS = 4
_BOTH_ENDS = {"nothing": "no text (nats per token)", "full": "full text (nats per token)"}
_KEY = ("dataset", "method", "metric", "segments", "between")


# ---- measuring ----


def untrained(group: str, history: Sequence[int]) -> dict[str, str]:
    """What needs no training, by what keeps 4 rows for each segment: 64 tokens, or in a dialogue a turn of about 14."""
    every = 4 if group == "dialogue" else 16
    sinks = [4 if segments > 1 else 1 for segments in history]
    recent = [ROWS * segments - first for segments, first in zip(history, sinks, strict=True)]
    kept = f"sinks={'/'.join(map(str, sinks))};recent={'/'.join(map(str, recent))}"
    # Each reads a text as the model itself does, 1,024 tokens at once.
    return {
        f"window:{kept};chunk_tokens=1024": "window",
        f"every-kth:every={every}": "every-kth",
        f"mean-pooled:every={every}": "mean-pooled",
        f"window:sinks=1;recent={ROWS - 1};chunk_tokens=1024": f"window of {ROWS} rows",
    }


def measure(given: argparse.Namespace) -> None:
    """Measure every group of data sets, and keep the rows of each as soon as it is done."""
    from byheart.evaluation.evaluate import evaluate
    from byheart.evaluation.results import save
    from byheart.evaluation.tasks.gap import Gap
    from byheart.model.backbone import Backbone
    from byheart.model.loading import silence

    silence()
    backbone = Backbone.open(given.model, dtype=given.dtype, device=given.device)
    shape = {name: getattr(given, name) for name in ("windows", "history", "between", "batch", "seed")}
    about = {"model": given.model, "dtype": str(backbone.dtype).removeprefix("torch."), **shape}
    kept = earlier(given.out, about)
    task = Gap(windows=given.windows, history=given.history, between=given.between, control=True)
    for group, sets in GROUPS.items():
        files = [str(given.data / f"{each}.jsonl") for each in sets if each in given.sets]
        if not files:
            continue
        labels = {spec: name(spec) for spec in given.methods}
        labels |= untrained(group, given.history) if given.free else {}
        print(f"{group}: {', '.join(labels.values())}", file=sys.stderr)
        for row in evaluate(task, files, list(labels), model=backbone, batch=given.batch, seed=given.seed):
            # Of one data set alone there is no row of all together.
            datasets = [group] if row.dataset == "all" else [row.dataset] if len(files) > 1 else [row.dataset, group]
            for dataset in datasets:
                found = replace(row, dataset=dataset, method=labels.get(row.method, row.method))
                kept[key(found.flat())] = found
        save(given.out, list(kept.values()), **about)


def name(spec: str) -> str:
    """What a memory is called in the tables: a folder by its own name."""
    return spec if "=" in spec else Path(spec).name


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What one number is of."""
    return tuple(row[field] for field in _KEY)


def earlier(path: Path, about: Mapping[str, Any]) -> dict[tuple[Any, ...], Any]:
    """The rows of a result file made with the same settings; none where there is no file."""
    from byheart.evaluation.results import Result

    if not path.exists():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    changed = [field for field, value in about.items() if stored["about"].get(field) != value]
    if changed:
        raise SystemExit(f"{path} was measured with another {', '.join(changed)}; give another --out, or remove it.")
    return {key(row): Result.of(row) for row in stored["rows"]}


# ---- tables ----


def gap_table(results: Path) -> str:
    """The tables as Markdown, from the JSON that ``measure`` wrote."""
    stored = json.loads(results.read_text(encoding="utf-8"))
    about, rows = stored["about"], {key(row): row for row in stored["rows"]}
    methods = list(dict.fromkeys(row["method"] for row in stored["rows"] if row["metric"] == "gap_closed"))
    middle = 4 if 4 in about["history"] else about["history"][-1]
    parts = [f"Gap closed with {middle} segments of history:", by_set(rows, methods, middle)]
    lengths = " · ".join(map(str, about["history"]))
    for between in about["between"]:
        after = f", {between} unrelated tokens before the target" if between else ""
        parts += [
            f"With {lengths} segments{after}:",
            by_history(rows, methods, about["history"], between, "gap_closed"),
        ]
    other = by_history(rows, ["full", *methods], about["history"], 0, "gap_closed_by_other_text")
    parts += ["Gap closed by the control, which reads another window's text:", other]
    parts += [
        "What is memory: gap closed with the own text less that with another's:",
        beyond_style(rows, methods, about["history"]),
    ]
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    made = f"{about['model']}, {about['dtype']}, {about['windows']} windows a set at most, seed {about['seed']}"
    own = " ".join(method for method in methods if method not in untrained("", [4]).values())
    lists = " ".join(f"--{name} {','.join(map(str, about[name]))}" for name in ("history", "between"))
    command = f"python benchmarks/gap.py {own} --windows {about['windows']} {lists}"
    parts.append(f"Made by `{command}` ({made}; {versions}) into `benchmarks/results/{results.name}`.")
    return "\n\n".join(parts)


def by_set(rows: Mapping[tuple[Any, ...], Mapping[str, Any]], methods: Sequence[str], segments: int) -> str:
    """One line a memory, one column a data set."""
    sets = [each for group in GROUPS.values() for each in group if (each, "full", "loss", segments, 0) in rows]

    def line(label: str, method: str, metric: str) -> str:
        found = [rows.get((each, method, metric, segments, 0)) for each in sets]
        sizes = [round(row["bytes"] / row["tokens"]) for row in found if row]
        kept = " to ".join(f"{size:,}" for size in sorted({min(sizes), max(sizes)})) if sizes else ""
        return _line([label, kept, *map(_value, found)])

    ends = [line(label, method, "loss") for method, label in _BOTH_ENDS.items()]
    shares = [line(f"`{method}`", method, "gap_closed") for method in methods]
    return "\n".join([*_head(["method", "bytes per token", *sets]), *shares, *ends])


def by_history(
    rows: Mapping[tuple[Any, ...], Mapping[str, Any]],
    methods: Sequence[str],
    history: Sequence[int],
    between: int,
    metric: str,
) -> str:
    """One line a memory, one column a group of data sets, in it a number for each length of history."""
    groups = [group for group in GROUPS if (group, "full", "loss", history[0], between) in rows]
    lines = _head(["method", *groups])
    for method in methods:
        cells = [[rows.get((group, method, metric, each, between)) for each in history] for group in groups]
        lines.append(_line([f"`{method}`", *(" · ".join(map(_value, cell)) for cell in cells)]))
    return "\n".join(lines)


def beyond_style(
    rows: Mapping[tuple[Any, ...], Mapping[str, Any]], methods: Sequence[str], history: Sequence[int]
) -> str:
    """What each memory closes less what it closes with another text; of the full text, all less that."""
    found = dict(rows)
    for (*place, metric, segments, between), row in rows.items():
        if metric == "gap_closed_by_other_text":
            own = rows.get((*place, "gap_closed", segments, between), {"value": 1.0})
            found[(*place, "beyond", segments, between)] = {"value": own["value"] - row["value"]}
    return by_history(found, ["full", *methods], history, 0, "beyond")


def _value(row: Mapping[str, Any] | None) -> str:
    # Adding 0 makes a rounded -0.0 plain.
    return "-" if row is None else f"{round(row['value'], 2) + 0:.2f}"


def _head(columns: Sequence[str]) -> list[str]:
    return [_line(columns), "|" + "---|" * len(columns)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def put(table: str, marker: str, page: Path) -> None:
    """Rewrite a page between a marker's two comments. Raises SystemExit where it has none."""
    before, opened, rest = page.read_text(encoding="utf-8").partition(f"<!-- {marker} -->\n")
    _, closed, after = rest.partition(f"<!-- /{marker} -->")
    if not opened or not closed:
        raise SystemExit(f"{page.name} has no <!-- {marker} --> markers.")
    page.write_text(f"{before}{opened}{table}\n{closed}{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure unless only the table is asked for, print the tables, and put them into docs/explanation/measures.md."""
    numbers = lambda text: [int(number) for number in text.split(",")]  # noqa: E731
    every = [each for group in GROUPS.values() for each in group]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", help="NAME[:key=value;key=value] or a folder")
    parser.add_argument("--data", type=Path, default=Path("eval"), help="folder of NAME.jsonl")
    parser.add_argument("--sets", nargs="*", choices=every, default=every)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--history", type=numbers, default=[1, 4, 16])
    parser.add_argument("--between", type=numbers, default=[0, 64])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-free", dest="free", action="store_false", help="leave out what needs no training")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(argv)
    if not given.table:
        measure(given)
    table = gap_table(given.out)
    print(table)
    marker = MARKERS.get(given.out.resolve())
    if marker is not None:
        put(table, marker, PAGE)


if __name__ == "__main__":
    main()
