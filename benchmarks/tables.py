"""Put the tables of the result files into the pages that show them, between their markers.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def cost_table(results: Path) -> str:
    """The cost table as Markdown, from the JSON that ``benchmarks/cost.py`` wrote."""
    stored = json.loads(results.read_text())
    about = stored["about"]
    lines = ["| what | against | goal | measured | peak memory |", "|---|---|---|---|---|"]
    for row in stored["rows"]:
        times = row["must"].endswith("x")
        measured = f"**{1 / row['ratio']:.1f}x**" if times else f"**{row['ratio']:.2f}**"
        bound = float(row["must"].strip("<>=x "))
        measured += " (missed)" * (1 / row["ratio"] < bound if times else row["ratio"] > bound)
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} MiB"
        must = row["must"].replace("<=", "≤").replace(">=", "≥")
        lines.append(f"| {row['name']}: {row['what']} | {row['floor']} | {must} | {measured} | {peak} |")
    made = f"{about['model']}, {about['dtype'].removeprefix('torch.')}, {about['threads']} CPU threads"
    versions = f"PyTorch {about['torch']}, transformers {about['transformers']}"
    return "\n".join([*lines, "", f"Made by `make bench` ({made}; {versions}) into `{results.relative_to(ROOT)}`."])


def training_table(results: Path) -> str:
    """The training table as Markdown, from the JSON that ``benchmarks/training.py`` wrote."""
    stored = json.loads(results.read_text())
    about = stored["about"]
    lines = ["| what | measured | goal |", "|---|---|---|"]
    # The file has more: tokens a second, all peaks, a straight line through them.
    for row in (row for row in stored["rows"] if row["required"] or row["unit"] == "times the speed"):
        must = row["required"].replace("<=", "≤").replace(">=", "≥")
        value = f"{row['value']:,.2f}"
        lines.append(f"| {row['name']} | {f'**{value}**' if must else value} {row['unit']} | {must} |")
    steps = f"rank {about['rank']} on {about['linears']}, {about['marks']} marks for {about['segment']} tokens"
    made = f"{about['model']}, {about['dtype']}, {about['threads']} CPU threads; {steps}; counted: {about['counted']}"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    name = f"benchmarks/results/{results.name}"
    return "\n".join(
        [
            *lines,
            "",
            f"Made by `python benchmarks/training.py --rounds {about['rounds']}` ({made}; {versions}) into `{name}`.",
        ]
    )


def questions_table(results: Path) -> str:
    """The table of ten questions as Markdown, from the JSON that ``benchmarks/questions.py`` wrote."""
    stored = json.loads(results.read_text())
    about, found = stored["about"], {row["name"]: row["value"] for row in stored["rows"]}
    lines = [
        "| method | evaluation / one write and ten answers | goal | one by one / evaluation |",
        "|---|---|---|---|",
    ]
    for method in dict.fromkeys(name.partition(":")[0] for name in found):
        ratio, saved = found[f"{method}: evaluation / least"], found[f"{method}: one by one / evaluation"]
        lines.append(f"| `{method}` | **{ratio:.2f}** | ≤ 1.3 | {saved:.1f} |")
    made = f"{about['model']}, {about['dtype']}, {about['threads']} CPU threads, {about['text_tokens']} tokens of text"
    command = f"python benchmarks/questions.py --rounds {about['rounds']}"
    return "\n".join([*lines, "", f"Made by `{command}` ({made}) into `benchmarks/results/{results.name}`."])


SHOWN = (
    *("nothing", "full", "compact@128KB", "compact@64KB", "repeat-score@256KB"),
    *("attention-score@256KB", "window@256KB", "retrieval", "compressed-kv", "latent-pool"),
    "last-ffn:keep_text=false",
)
# A measure of ``benchmarks/results.toml``, the column it has numbers for, and the rows that are its number. A measure
# that has no rows yet has no column.
COLUMNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("questions-short", "answers: contains", {"metric": "contains"}),
    ("questions-short", "answers: F1", {"metric": "f1"}),
    ("questions-short", "nats per token of a right answer", {"metric": "gold_loss"}),
    ("questions-short", "... more than after another text", {"metric": "gold_loss_over_other_text"}),
    ("needle", "needles in 1,000 words", {"metric": "mean_accuracy", "words": 1000}),
    ("edit", "edits (score)", {"metric": "score", "dataset": "counterfact"}),
    ("dialogue", "perplexity of a reply after 8 turns", {"metric": "perplexity", "dataset": "personachat", "turn": 8}),
)
# What reading costs, where it was measured: the name of the cost, the column, and how its numbers are written.
READING: dict[str, tuple[str, Callable[[float], str]]] = {
    "reading_bytes": ("bytes while reading", lambda count: f"{count / 1000:,.1f} kB"),
    "reread_tokens": ("tokens read again", lambda count: f"{count:,.0f}"),
    "first_token_seconds": ("to the first token", lambda seconds: f"{seconds * 1000:,.0f} ms"),
}


def tasks_table(results: Path) -> str:
    """The best of ``docs/explanation/results.md``: a row a memory, a column a measure; numbers link to their rows.

    What reading costs is left out where no row says it, and is a dash where one does not.
    """
    cells: dict[str, dict[str, str]] = {}
    costs: dict[str, dict[str, Any]] = {}
    measured = [column for column in COLUMNS if (results / column[0] / "rows.json").exists()]
    for measure, title, wanted in measured:
        rows = json.loads((results / measure / "rows.json").read_text())["rows"]
        found = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
        for method in dict.fromkeys(row["method"] for row in found):
            (own,) = (row for row in found if row["method"] == method)
            value = f"{own['value']:.0f}" if measure == "dialogue" else f"{own['value']:.2f}"
            cells.setdefault(method, {}).setdefault(title, f"[{value}]({_row(measure, own)})")
            costs.setdefault(method, own)
    titles = list(dict.fromkeys(title for _, title, _ in measured))
    reading = [name for name in READING if any(name in costs.get(method, {}) for method in SHOWN)]
    heads = ["keeps of a paragraph", *(READING[name][0] for name in reading), *titles]
    lines = [f"| method | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for method in SHOWN:
        cost = costs.get(method, {"bytes": 0})
        spent = [READING[name][1](cost[name]) if name in cost else "-" for name in reading]
        numbers = [cells.get(method, {}).get(title, "") for title in titles]
        kept = f"{cost['bytes'] / 1000:,.1f} kB"
        lines.append(f"| `{method}` | {' | '.join([kept, *spent, *numbers])} |")
    command = "python benchmarks/results.py --data eval && python benchmarks/tables.py"
    made = f"Made by `{command}` from `benchmarks/results/{results.name}`."
    return "\n".join([*lines, "", made])


def _row(measure: str, row: Mapping[str, Any]) -> str:
    """Where a row stands in the page of results."""
    from byheart.evaluation.results import Result
    from byheart.reports.html_report import anchor

    conditions = [f"{name} {value}" for name, value in Result.of(row).conditions.items()]
    return f"docs/explanation/results.md#{anchor(measure, row['dataset'], row['method'], *conditions)}"


def contention_table(results: Path) -> str:
    """How long a write takes beside busy processes: a row for each policy, a column for each number of neighbours."""
    stored = json.loads(results.read_text())
    about, rows = stored["about"], stored["rows"]
    columns = list(dict.fromkeys((row["neighbours"], row["busy"]) for row in rows))
    titles = ["idle, over no policy" if not busy else f"{busy} x {kind}" for kind, busy in columns]
    lines = [f"| policy | {' | '.join(titles)} |", "|---|" + "---|" * len(columns)]
    for policy in dict.fromkeys(row["policy"] for row in rows):
        shares = {(row["neighbours"], row["busy"]): row["share"] for row in rows if row["policy"] == policy}
        lines.append(f"| {policy} | {' | '.join(f'{shares[column]:.2f}' for column in columns)} |")
    made = f"{about['tokens']} tokens, {about['cores']} cores; PyTorch {about['torch']}"
    command = f"Made by `python benchmarks/contention.py` ({made}) into `{results.relative_to(ROOT)}`."
    return "\n".join([*lines, "", command])


def _sources(run: Mapping[str, Any]) -> str:
    """The version that was attacked, and which commits of it, where the results say."""
    about = run["about"]
    rows = [{**about, **row} for row in run["rows"]]
    commits = dict.fromkeys(f"{row['commit']} of {row['date']}" for row in rows if "commit" in row)
    return f"byheart {about['byheart']}" + (f" ({', '.join(commits)})" if commits else "")


def attack_table(results: Path) -> str:
    """What ``python -m tests.faults.report`` tried, and how much of it got through, before and now."""
    stored = json.loads(results.read_text())
    before = {row["name"]: row for row in stored["before"]["rows"]}
    lines = ["| attack | what is tried, and what counts as a failure | failures before | now |", "|---|---|---|---|"]
    for row in stored["now"]["rows"]:
        counts = [f"{run['failures']:,} of {run['tries']:,}" if run else "" for run in (before.get(row["name"]), row)]
        lines.append(f"| `{row['name']}` | {row['what']} | {counts[0]} | **{counts[1]}** |")
    versions = "; ".join(f"{when}: {_sources(stored[when])}" for when in ("before", "now"))
    about = stored["now"]["about"]
    made = f"seed {about['seed']}; PyTorch {about['torch']}, transformers {about['transformers']}; {versions}"
    return "\n".join([*lines, "", f"Made by `make attack` ({made}) into `{results.relative_to(ROOT)}`."])


def serving_table(results: Path) -> str:
    """What a server costs and saves, from the JSON that ``benchmarks/serving.py`` wrote."""
    stored = json.loads(results.read_text())
    about = stored["about"]
    lines = ["| what | against | goal | measured | ours / the other's |", "|---|---|---|---|---|"]
    for row in stored["rows"]:
        sign, _, bound = row["must"].partition(" ")
        ratio, least, most = row["ratio"], float(bound or 0) if sign == ">=" else 0.0, float(bound or "inf")
        measured = f"**{ratio:.{3 if ratio < 0.1 else 2}f}**" + " (missed)" * (
            ratio < least or (sign != ">=" and ratio > most)
        )
        must = row["must"].replace("<=", "≤").replace(">=", "≥")
        numbers = f"{row['ours']:,.3g} / {row['reference_value']:,.3g}{'; ' * bool(row['note'])}{row['note']}"
        lines.append(f"| {row['name']}: {row['what']} | {row['reference']} | {must} | {measured} | {numbers} |")
    text = f"{about['model']}, memories of {about['memory_tokens']:,} tokens, answers of {about['answer_tokens']}"
    made = f"{text}, {about['cores']} cores; PyTorch {about['torch']}, transformers {about['transformers']}"
    out = "" if results.stem == "serving" else f" --out {results.relative_to(ROOT)}"
    command = f"python benchmarks/serving.py --rounds {about['rounds']}{out}"
    return "\n".join([*lines, "", f"Made by `{command}` ({made}) into `{results.relative_to(ROOT)}`."])


def soak_table(results: Path) -> str:
    """What many clients of one server got in an hour, from the JSON that ``python -m tests.faults.soak`` wrote."""
    found = json.loads(results.read_text())
    shape = f"{found['memories']} memories, {found['clients']} clients, {found['seconds'] / 60:,.0f} minutes"
    lines = ["| what | |", "|---|---|", f"| clients | {shape} |"]
    lines += [f"| requests: {kind} | {count:,} |" for kind, count in found["requests"].items()]
    lines.append(f"| evicted memories in files, at most at a time | {found['most_decoded_files']:,} |")
    lines.append(f"| memory of the server, an hour later / before | {found['growth_in_an_hour']:.3f} |")
    what = "failures: another error, an answer of another memory, memory that grows"
    lines.append(f"| {what} | **{found['failures']:,}** |")
    command = f"python -m tests.faults.soak --memories {found['memories']} --clients {found['clients']}"
    made = f"{command} --seconds {found['seconds']:.0f} --out {results.relative_to(ROOT)}"
    return "\n".join([*lines, "", f"Made by `{made}` (PyTorch {found['about']['torch']})."])


TABLES: dict[str, Callable[[Path], str]] = {
    "cost": cost_table,
    "training": training_table,
    "questions": questions_table,
    "tasks": tasks_table,
    "contention": contention_table,
    "attack": attack_table,
    "serving": serving_table,
    "serving-float32": serving_table,
    "soak": soak_table,
}


COSTS = ROOT / "docs" / "explanation" / "costs.md"
PAGES = {
    "cost": COSTS,
    "training": COSTS,
    "questions": COSTS,
    "tasks": ROOT / "README.md",
    "contention": ROOT / "docs" / "how-to" / "threads.md",
    "attack": ROOT / "docs" / "explanation" / "threat-model.md",
    "serving": COSTS,
    "serving-float32": COSTS,
    "soak": ROOT / "docs" / "explanation" / "threat-model.md",
}


def source(marker: str) -> Path:
    """The file, or the folder, that a table is made from."""
    folder = ROOT / "benchmarks" / "results" / marker
    return folder if folder.is_dir() else folder.with_suffix(".json")


def put(text: str, marker: str, table: str) -> str:
    """``text`` with what stands between ``marker``'s two comments replaced."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{PAGES[marker].name} has no <!-- {marker} --> markers.")
    return pattern.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)


def main() -> None:
    """Write every table whose results are there into its page."""
    for marker, table in TABLES.items():
        results, page = source(marker), PAGES[marker]
        if results.exists():
            page.write_text(put(page.read_text(encoding="utf-8"), marker, table(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
