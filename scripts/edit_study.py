"""Keys or values: edit facts by plain gradient in the one or the other, and measure what else changes.

    python scripts/edit_study.py --test eval/counterfact.jsonl eval/zsre.jsonl
    python scripts/edit_study.py ... --beside nothing full rome memit ike --demonstrations train/counterfact.jsonl
    python scripts/edit_study.py ... --quick                       few edits and settings: does it run?

The first half of the study of feed-forward keys and values (Qiu et al. 2024, arXiv 2402.12233), with the method
``ffn-edit``. In a gated block the keys are two matrices and the values one, so there are two comparisons: the same
layers, in which keys have twice the parameters, and the same parameters: gate or up alone against values (which are
``down``), and keys against values in twice the layers. Each place gets its own learning rate, at the first number of
steps, and then its own number of steps: those of the best score on edits of the same set that are not tested, its first
ones or those of ``--dev``. Beside them stand the model unedited (``nothing``), with the edit in its context (``full``),
and with its last block tuned (``last-ffn``).

Every run has a folder of its own; an interrupted one resumes. The result has a row for each number, and rows such as
``keys - values`` for differences on the same edits; their intervals come from drawing edits.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("efficacy", "paraphrase", "specificity")
WIDE = "values in twice the layers"
PAIRS = (("keys", "values"), ("gate", "values"), ("up", "values"), ("keys", WIDE))
QUICK: dict[str, Any] = {"dev_limit": 2, "limit": 2, "steps": ["1", "2"]}
QUICK |= {"learning_rates": ["1e-3", "1e-2"], "last_rates": ["1e-4", "1e-3"]}


@dataclass(frozen=True)
class Place:
    """Where a text is learned: a method, its options that are not chosen, and the learning rates to choose from."""

    method: str
    options: Mapping[str, str]
    rates: Sequence[str]


@dataclass(frozen=True)
class Chosen:
    """The setting of a place that was best, and the score of every setting that was tried."""

    spec: str
    tried: Mapping[str, float]


def places(layers: Sequence[int], rates: Sequence[str], last_rates: Sequence[str]) -> dict[str, Place]:
    """What is compared, by name. Raises SystemExit where there are not as many layers below ``layers``."""
    below = range(min(layers) - len(layers), min(layers))
    if below.start < 0:
        raise SystemExit(f"There are no {len(layers)} layers below {list(layers)}; give higher --layers.")

    def edited(role: str, *where: int) -> Place:
        return Place("ffn-edit", {"role": role, "layers": json.dumps(where, separators=(",", ":"))}, rates)

    return {
        **{role: edited(role, *layers) for role in ("keys", "gate", "up", "values")},
        WIDE: edited("values", *below, *layers),
        "last-ffn": Place("last-ffn", {"keep_text": "false"}, last_rates),
    }


def choose(place: Place, dev: str, args: argparse.Namespace) -> Chosen:
    """What is best on the edits of ``dev``: a learning rate at the first number of steps, then steps at that rate."""
    from byheart.evaluation.grid_search import search

    def tried(rates: Sequence[str], steps: Sequence[str]) -> dict[str, float]:
        grid = {**{name: [value] for name, value in place.options.items()}, "learning_rate": rates, "steps": steps}
        about = {name: getattr(args, name) for name in ("model", "dtype", "batch", "seed")}
        out = {"limit": args.dev_limit, "out": args.runs / "dev"}
        rows = search(task(args), dev, method=place.method, grid=grid, metric="score", **about, **out)
        return {row.method: row.value for row in rows}

    found = tried(place.rates, args.steps[:1])
    if len(args.steps) > 1:
        rate = next(iter(found)).partition("learning_rate=")[2].partition(";")[0]
        found |= tried([rate], args.steps[1:])
    spec = max(found, key=lambda setting: found[setting])
    print(f"{spec}: {found[spec]:.3f} of {len(found)} settings", file=sys.stderr)
    return Chosen(spec, found)


def measure(spec: str, file: str, backbone: Any, args: argparse.Namespace) -> tuple[list[Any], Path]:
    """The rows of one setting on one file of edits, and the folder of its answers."""
    from byheart.evaluation.evaluate import evaluate

    out = args.runs / "test" / Path(file).stem / re.sub(r"[^A-Za-z0-9.=-]+", "_", spec)
    about = {name: getattr(args, name) for name in ("limit", "batch", "seed")}
    # What settings were chosen on is not tested.
    skip = 0 if args.dev else math.ceil(args.dev_limit / args.edits)
    return evaluate(task(args), file, [spec], model=backbone, out=out, skip=skip, **about), out


def task(args: argparse.Namespace) -> Any:
    """So many edits one after another, with demonstrations for methods that look at them."""
    from byheart.evaluation.tasks.edit import Edit

    return Edit(edits=args.edits, demonstrations=args.demonstrations)


# ---- differences ----


def successes(folder: Path, limit: int) -> dict[str, dict[int, tuple[float, float]]]:
    """Metric -> edit -> its success and weight, as ``evaluate`` kept them in the folder of one method."""
    # An earlier version may have left answers of other options beside them.
    file = max(folder.glob("answers/*/*/*.jsonl"), key=lambda file: file.stat().st_mtime)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    parts = {(line["item"], line["question"]): line["parts"] for line in lines if line["item"] < limit or not limit}
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for (item, _), scores in sorted(parts.items()):
        for metric, (total, weight) in scores.items():
            before = found.setdefault(metric, {}).get(item, (0.0, 0.0))
            found[metric][item] = (before[0] + total, before[1] + weight)
    return found


def compare(name: str, first: Path, second: Path, like: Any, limit: int) -> list[Any]:
    """Rows of how much better the first is than the second on the same edits; ``like`` is a row of theirs."""
    import torch
    from torch import Tensor

    from byheart.evaluation.statistics import bounds, draws

    def means(folder: Path) -> tuple[Tensor, int]:
        """Each metric and the score (4, 1 + draws): over all edits, and over drawn ones."""
        found = successes(folder, limit)
        parts = torch.tensor([[found[metric][item] for item in sorted(found[metric])] for metric in METRICS])
        count = parts.shape[1]
        sums = torch.cat([parts.sum(1, keepdim=True), parts[:, draws(count)].sum(2)], dim=1)
        rates = sums[..., 0] / sums[..., 1]
        return torch.cat([rates, 3 / (1 / rates).sum(0, keepdim=True)]), count

    (ours, count), (theirs, _) = means(first), means(second)
    rows = []
    for metric, values in zip((*METRICS, "score"), ours - theirs, strict=True):
        low, high = bounds(values[0].item(), values[1:], count)
        found = {"metric": metric, "value": values[0].item(), "low": low, "high": high, "n": count, "clusters": count}
        difference = {"method": name, **found}
        rows.append(replace(like, **difference, bytes=0, seconds=0.0, conditions={}, costs={}))
    return rows


# ---- the study ----


def study(args: argparse.Namespace) -> None:
    """Choose and measure everything, and keep the table as it grows."""
    from byheart.evaluation.results import save
    from byheart.model.backbone import Backbone
    from byheart.model.loading import silence

    silence()
    backbone = Backbone.open(args.model, dtype=args.dtype)
    args.layers = args.layers or [len(backbone.layers) // 2]
    compared = places(args.layers, args.learning_rates, args.last_rates)
    chosen: dict[str, Mapping[str, Chosen]] = {}
    rows: list[Any] = []
    for file, dev in zip(args.test, args.dev or args.test, strict=True):
        own = chosen[Path(file).stem] = {name: choose(place, dev, args) for name, place in compared.items()}
        settings = {**{spec: spec for spec in args.beside}, **{name: setting.spec for name, setting in own.items()}}
        folders = {}
        for name, spec in settings.items():
            found, folders[name] = measure(spec, file, backbone, args)
            rows += [replace(row, method=name) for row in found]
        for first, second in PAIRS:
            rows += compare(f"{first} - {second}", folders[first], folders[second], rows[-1], args.limit)
        save(args.out, rows, **about(args, chosen, sizes(compared, backbone)))


def sizes(compared: Mapping[str, Place], backbone: Any) -> dict[str, int]:
    """How many weights each place changes."""
    from byheart.evaluation.method_spec import MethodSpec
    from byheart.methods import build

    counts = {}
    for name, place in compared.items():
        spec = f"{place.method}:{';'.join(f'{key}={value}' for key, value in place.options.items())}"
        choice = MethodSpec.of(spec, 0, 1)
        counts[name] = sum(delta.numel() for delta in build(choice.name, backbone, **choice.options).init().values())
    return counts


def about(
    args: argparse.Namespace, chosen: Mapping[str, Mapping[str, Chosen]], parameters: Mapping[str, int]
) -> dict[str, Any]:
    """What decides the numbers, and what was tried on the way to them, for each file."""
    names = ["model", "dtype", "layers", "learning_rates", "last_rates", "steps", "dev_limit", "limit", "batch", "seed"]
    names += ["edits", "beside"]
    files = {part: [Path(file).name for file in getattr(args, part)] for part in ("dev", "test")}
    tried = {name: {place: dict(setting.tried) for place, setting in own.items()} for name, own in chosen.items()}
    return {
        **{name: getattr(args, name) for name in names},
        **files,
        "parameters": dict(parameters),
        "settings": {name: {place: setting.spec for place, setting in own.items()} for name, own in chosen.items()},
        "dev_scores": tried,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dev",
        nargs="+",
        default=[],
        metavar="FILE",
        help="edits to choose on, a file for each test or one",
    )
    parser.add_argument("--test", nargs="+", required=True, metavar="FILE", help="edits that are measured")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--layers", nargs="+", type=int, default=[], help="layers that are edited; the middle one")
    parser.add_argument("--learning-rates", nargs="+", default=["1e-3", "2e-3", "4e-3", "8e-3", "16e-3"])
    parser.add_argument("--last-rates", nargs="+", default=["1e-4", "3e-4", "1e-3"], help="the same for last-ffn")
    parser.add_argument("--steps", nargs="+", default=["5", "10"], help="the rate is chosen at the first of them")
    parser.add_argument("--dev-limit", type=int, default=100, help="edits to choose on; 0 is all")
    parser.add_argument("--limit", type=int, default=200, help="edits of a test file; 0 is all")
    parser.add_argument("--edits", type=int, default=1, help="edits one after another before any is asked about")
    parser.add_argument(
        "--beside", nargs="+", default=["nothing", "full"], metavar="METHOD", help="measured as they are"
    )
    parser.add_argument("--demonstrations", default="", metavar="FILE", help="other edits, for ike")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of the order of edits")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "edit_study", help="folder of all runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "edit_study.json")
    parser.add_argument("--quick", action="store_true", help="two edits a file, two rates, one and two steps")
    args = parser.parse_args(arguments)
    vars(args).update(QUICK if args.quick else {})
    args.dev = args.dev * len(args.test) if len(args.dev) == 1 else args.dev
    if args.dev and len(args.dev) != len(args.test):
        parser.error(f"give as many --dev as --test files, one, or none; it is {len(args.dev)} for {len(args.test)}")
    if not args.dev and not args.dev_limit:
        parser.error("without --dev files, --dev-limit says how many first edits of each test file are not tested")
    study(args)


if __name__ == "__main__":
    main()
