"""Put the tables of the result files into README.md, between their markers.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cost_table(results: Path) -> str:
    """The cost table as Markdown, from the JSON that ``benchmarks/cost.py`` wrote."""
    stored = json.loads(results.read_text())
    about = stored["about"]
    lines = ["| what | against | must | measured | peak memory |", "|---|---|---|---|---|"]
    for row in stored["rows"]:
        times = row["must"].endswith("x")
        measured = f"{1 / row['ratio']:.1f}x" if times else f"{row['ratio']:.2f}"
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} MB"
        must = row["must"].replace("<=", "≤").replace(">=", "≥")
        lines.append(f"| {row['name']}: {row['what']} | {row['floor']} | {must} | **{measured}** | {peak} |")
    made = f"{about['model']}, {about['dtype'].removeprefix('torch.')}, {about['threads']} CPU threads"
    versions = f"PyTorch {about['torch']}, transformers {about['transformers']}"
    return "\n".join([*lines, "", f"Made by `make bench` ({made}; {versions}) into `{results.relative_to(ROOT)}`."])


def put(text: str, marker: str, table: str) -> str:
    """``text`` with what stands between ``marker``'s two comments replaced."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no <!-- {marker} --> markers.")
    return pattern.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)


def main() -> None:
    """Rewrite README.md."""
    readme = ROOT / "README.md"
    table = cost_table(ROOT / "benchmarks" / "results" / "cost.json")
    readme.write_text(put(readme.read_text(encoding="utf-8"), "cost", table), encoding="utf-8")


if __name__ == "__main__":
    main()
