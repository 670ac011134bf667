"""Keys or values: train an adapter at each place, several times, and measure all of them on the same tasks.

    python scripts/ffn_study.py --train boolq.jsonl rte.jsonl:0.5 --test eval/boolq.jsonl eval/rte.jsonl
    python scripts/ffn_study.py ... --quick                        few records and seeds: does it run?

The four presets of the study of feed-forward keys and values (Qiu et al. 2024, arXiv 2402.12233), each with several
seeds. ``qv`` has no feed-forward matrix, so its rank is raised until it has as many parameters as the others, unless
``--same-rank``. Every run has a folder of its own; an interrupted one resumes, and the result file is written anew
after each round of presets. Its intervals are over items: of the mean over seeds, Wilson's, as if each item had been
answered once, which is too wide rather than too narrow. Over seeds alone, of which there are few, there are none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ALPHA_PER_RANK = 2
QUICK: dict[str, Any] = {"seeds": [0, 1], "epochs": 1, "limit": 2}


def choose_ranks(model: str, rank: int, *, same: bool) -> dict[str, int]:
    """The rank of each preset with which all have as many parameters as those of one feed-forward matrix."""
    from byheart.methods import build
    from byheart.methods.adapter import PRESETS
    from byheart.model.backbone import Backbone

    backbone = Backbone.open(model)
    sizes = {
        preset: sum(parameter.numel() for parameter in build("adapter", backbone, preset=preset, rank=1).parameters())
        for preset in PRESETS
    }
    return {preset: rank if same else round(rank * max(sizes.values()) / size) for preset, size in sizes.items()}


def train(preset: str, seed: int, rank: int, args: argparse.Namespace) -> Path:
    """Train one adapter, or resume; gives its folder."""
    from byheart.training.config import TrainingConfig

    out: Path = args.runs / f"{preset}-{seed}"
    settings = {name: getattr(args, name) for name in ("model", "dtype", "epochs", "batch", "packed", "learning_rate")}
    options: dict[str, Any] = {"preset": preset, "rank": rank, "alpha": float(ALPHA_PER_RANK * rank), "seed": seed}
    config = TrainingConfig.of(
        method="adapter", options=options, data=args.train, prompts=args.prompts, seed=seed, **settings
    )
    result = config.run(out)
    print(f"{out}: {len(result.losses)} steps, {result.parameters:,} parameters", file=sys.stderr)
    return out


def measure(method: str, args: argparse.Namespace) -> list[Any]:
    """The accuracy of one method on every test file."""
    from byheart.evaluation.evaluate import evaluate
    from byheart.evaluation.tasks.multitask import Multitask

    about = {"model": args.model, "dtype": args.dtype, "limit": args.limit, "out": args.runs / "measured"}
    rows = [row for file in args.test for row in evaluate(Multitask(), file, [method], batch=args.batch, **about)]
    return [row for row in rows if row.metric == "accuracy"]


def with_mean(accuracies: Sequence[Any]) -> list[Any]:
    """Rows of one method, and their mean over test files where there are several."""
    from byheart.evaluation.results import means

    return [*accuracies, *(replace(row, dataset="all") for row in means(accuracies, over="set", metric="accuracy"))]


def average_seeds(preset: str, runs: Sequence[Sequence[Any]]) -> list[Any]:
    """The mean of each share over runs, and its interval over items; ``n`` is the number of items of a run."""
    from byheart.evaluation.statistics import FEWEST_CLUSTERS, wilson

    rows = []
    for same in zip(*runs, strict=True):
        first, value = same[0], fmean(row.value for row in same)
        low, high = wilson(value, first.clusters) if first.clusters >= FEWEST_CLUSTERS else (value, value)
        conditions = {**first.conditions, "seeds": len(same)}
        rows.append(replace(first, method=preset, value=value, low=low, high=high, conditions=conditions))
    return rows


def study(args: argparse.Namespace) -> None:
    """Train and measure everything, and keep the table as it grows."""
    from byheart.evaluation.results import save
    from byheart.model.loading import silence

    silence()
    chosen = choose_ranks(args.model, args.rank, same=args.same_rank)
    base = measure("nothing", args)
    found: dict[str, list[list[Any]]] = {preset: [] for preset in chosen}
    for seed in args.seeds:
        for preset, rank in chosen.items():
            found[preset].append(measure(str(train(preset, seed, rank, args)), args))
        averaged = (average_seeds(preset, runs) for preset, runs in found.items())
        rows = [row for members in (base, *averaged) for row in with_mean(members)]
        save(args.out, rows, **describe(args, chosen))


def describe(args: argparse.Namespace, chosen: Mapping[str, int]) -> dict[str, Any]:
    """What decides the numbers, and how large each adapter is."""
    first = args.seeds[0]
    sizes = {
        preset: json.loads((args.runs / f"{preset}-{first}" / "recipe.json").read_text(encoding="utf-8"))["parameters"]
        for preset in chosen
    }
    names = ("model", "dtype", "seeds", "epochs", "batch", "packed", "learning_rate", "limit", "prompts")
    files = {part: [Path(file).name for file in getattr(args, part)] for part in ("train", "test")}
    return {**{name: getattr(args, name) for name in names}, **files, "ranks": dict(chosen), "parameters": sizes}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True, metavar="FILE[:SHARE]", help="labelled records")
    parser.add_argument("--test", nargs="+", required=True, metavar="FILE", help="labelled records of the same tasks")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--same-rank", action="store_true", help="the same rank for all, as published")
    parser.add_argument("--prompts", default="label", choices=["label", "all"], help="what is supervised")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--packed", type=int, default=1, help="batches dealt by length, so that less is padding")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--limit", type=int, default=0, help="items of a test file; 0 is all")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ffn_study", help="folder of all runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "ffn_study.json")
    parser.add_argument("--quick", action="store_true", help="two seeds, one epoch, two items of a test file")
    args = parser.parse_args(arguments)
    vars(args).update(QUICK if args.quick else {})
    study(args)


if __name__ == "__main__":
    main()
