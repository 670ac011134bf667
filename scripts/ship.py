"""Put a trained method into the package, in bfloat16 and with a card.

    python scripts/ship.py trained/latent-pool latent-pool     a run's folder, and the name in the package
    python scripts/ship.py --cards                             write all cards again, with the present numbers

A card says what the method was trained on and under which licences, how, for how long, and what it reaches.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
PRETRAINED = ROOT / "byheart" / "methods" / "pretrained"
RESULTS = ROOT / "benchmarks" / "results" / "gap.json"
MOST_BYTES = 8_000_000
LICENCES = {
    "fairytaleqa.jsonl": "FairytaleQA, Apache-2.0",
    "novels.jsonl": "34 novels, public domain",
    "nq.jsonl": "NaturalQuestions with gold paragraphs, CC BY-SA 3.0",
    "personachat.jsonl": "PersonaChat, CC BY 4.0",
    "squad.jsonl": "SQuAD v2, CC BY-SA 4.0",
    "tinystories.jsonl": "TinyStories, CDLA-Sharing-1.0",
    "wikitext2.jsonl": "WikiText-2, CC BY-SA 3.0",
}


def ship(run: Path, target: Path) -> None:
    """Copy a run's learned parts into ``target``, a folder of the package. Raises SystemExit where they are large."""
    target.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.to(torch.bfloat16) for key, tensor in load_file(run / "method.safetensors").items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > MOST_BYTES:
        raise SystemExit(f"{run} holds {size:,} bytes in bfloat16; the package takes {MOST_BYTES:,} per method.")
    save_file(tensors, target / "method.safetensors")
    shutil.copyfile(run / "method.json", target / "method.json")
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    recipe["taken"] = count_costs(run / "metrics.jsonl")
    (target / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def count_costs(metrics: Path) -> dict[str, float]:
    """What a run took in all."""
    steps = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return {
        "steps": len(steps),
        "tokens": sum(step["tokens"] for step in steps),
        "seconds": round(sum(step["seconds"] for step in steps)),
    }


def write_card(folder: Path, results: Path = RESULTS) -> None:
    """Write ``README.md`` beside shipped parts, from their recipe and the result file."""
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    method = json.loads((folder / "method.json").read_text(encoding="utf-8"))
    taken, size = recipe["taken"], (folder / "method.safetensors").stat().st_size
    options = ", ".join(f"{key} {value}" for key, value in method["options"].items())
    kept = ", ".join(f"{key} {recipe[key]}" for key in ("learning_rate", "teacher", "every_segment", "seed", "dtype"))
    lines = [
        f"# {folder.name}",
        "",
        f"The learned parts of a `{method['method']}` memory for SmolLM2-135M-Instruct (backbone "
        f"`{method['backbone']}`), in bfloat16: {size / 1e6:.1f} MB. The model itself is unchanged and not included.",
        "",
        f"Options: {options}.",
        "",
        "## Training",
        "",
        f"`byheart train --recipe recipes/{folder.name}.toml --out trained/{folder.name}`",
        "",
        f"{taken['steps']:,} steps, {taken['tokens']:,} tokens, {taken['seconds']:,} seconds on one CPU thread of a "
        f"machine that was shared; {kept}. All settings and versions: `recipe.json`.",
        *([f"{recipe['notes']}"] if "notes" in recipe else []),
        "",
        "| data | weight |",
        "|---|---|",
        *(f"| {LICENCES[name]} | {weight:g} |" for name, _, weight in recipe["data"]),
        "",
        "These weights are derived from SmolLM2-135M-Instruct (Apache-2.0) and are under Apache-2.0, like byheart.",
        "",
        "## What it reaches",
        "",
        *tabulate(method, results),
        "",
        "## Limits",
        "",
        "A small model trained for a short time, on English text alone. Names and numbers are often lost: ask for the "
        "gist, and keep the text where every word counts.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def tabulate(method: dict[str, Any], results: Path) -> list[str]:
    """The result file's rows of a shipped method, as a table."""
    if not results.exists():
        return ["Not measured yet."]
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    name = method["method"] + (":merge=mean" if method["options"].get("merge") == "mean" else "")
    measured = [row for row in rows if row["method"] == name and row["metric"] == "gap_closed"]
    lines = ["Share of the gap between no text and the full text that it closes (`byheart evaluate gap`):", ""]
    lines += ["| data | gap closed | 95 % | windows | bytes |", "|---|---|---|---|---|"]
    for row in measured:
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        lines.append(f"| {row['dataset']} | {row['value']:.2f} | {interval} | {row['n']} | {row['bytes']:,} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="the folder that `byheart train` wrote")
    parser.add_argument("name", nargs="?", help="of its folder in the package")
    parser.add_argument("--cards", action="store_true", help="write all cards again")
    chosen = parser.parse_args()
    if not chosen.cards and (chosen.run is None or chosen.name is None):
        parser.error("give a run's folder and a name, or --cards")
    if chosen.run is not None and chosen.name is not None:
        ship(chosen.run, PRETRAINED / chosen.name)
    for folder in sorted(path.parent for path in PRETRAINED.glob("*/method.json")):
        write_card(folder)


if __name__ == "__main__":
    main()
