r"""Keys or values: train an adapter at each place, several times, and measure all of them on the same tasks.

    python scripts/ffn_study.py --train boolq.jsonl rte.jsonl:0.5 --test eval/boolq.jsonl eval/rte.jsonl
    python scripts/ffn_study.py --each --train train/{boolq,copa,cb,rte,qnli}.jsonl \
        --test eval/{boolq,copa,cb,rte,qnli}.jsonl
    python scripts/ffn_study.py --each --train train/newsgroups20.jsonl --test eval/newsgroups20.jsonl --seeds 0
    python scripts/ffn_study.py ... --quick                        few records and seeds: does it run?

The four presets of the study of feed-forward keys and values (Qiu et al. 2024, arXiv 2402.12233), each with several
seeds. ``qv`` has no feed-forward matrix, so its rank is raised until it has as many parameters as the others, unless
``--same-rank``. One adapter learns all tasks, or with ``--each`` one file alone, and is tested on the file beside it.
Every run has a folder of its own; an interrupted one resumes, and the result file is written anew after each of them.

Intervals are Student's over seeds, each of which is another training, and so are those of the rows ``qv+up - qv+down``,
whose seeds are paired. With one seed, or where all seeds have one number, they are Wilson's over items: of the mean, as
if each item had been answered once. Fewer than 200 test items say little; ``--limit`` may not ask for fewer, and a set
that has fewer says so by its ``n``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ALPHA_PER_RANK = 2
FEWEST_ITEMS = 200
PAIRS = (("qv+up", "qv+down"), ("qv+gate", "qv+down"), ("qv+down", "qv"), ("qv+up", "qv"), ("qv+gate", "qv"))
# Student's 97.5 % quantiles of 1, 2, ... degrees of freedom; more have the last, which is too wide.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
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


def train(preset: str, seed: int, rank: int, files: Sequence[str], runs: Path, args: argparse.Namespace) -> Path:
    """Train one adapter on files, or resume; gives its folder."""
    from byheart.training.config import TrainingConfig

    out = runs / f"{preset}-{seed}"
    settings = {name: getattr(args, name) for name in ("model", "dtype", "epochs", "batch", "packed", "learning_rate")}
    settings |= {name: getattr(args, name) for name in ("most_records", "pack_tokens", "schedule")}
    options: dict[str, Any] = {"preset": preset, "rank": rank, "alpha": float(ALPHA_PER_RANK * rank), "seed": seed}
    config = TrainingConfig.of(
        method="adapter", options=options, data=list(files), prompts=args.prompts, seed=seed, **settings
    )
    result = config.run(out)
    print(f"{out}: {len(result.losses)} steps, {result.parameters:,} parameters", file=sys.stderr)
    return out


def measure(method: str, files: Sequence[str], args: argparse.Namespace) -> list[Any]:
    """The accuracy of one method on every test file."""
    from byheart.evaluation.evaluate import evaluate
    from byheart.evaluation.tasks.multitask import Multitask

    about = {"model": args.model, "dtype": args.dtype, "limit": args.limit, "out": args.runs / "measured"}
    rows = [row for file in files for row in evaluate(Multitask(), file, [method], batch=args.batch, **about)]
    return [row for row in rows if row.metric == "accuracy"]


def with_mean(accuracies: Sequence[Any]) -> list[Any]:
    """Rows of one method, and their mean over test files where there are several."""
    from byheart.evaluation.results import means

    return [*accuracies, *(replace(row, dataset="all") for row in means(accuracies, over="set", metric="accuracy"))]


def average_seeds(preset: str, runs: Sequence[Sequence[Any]]) -> list[Any]:
    """The mean of each share over runs, and its interval; ``n`` is the number of items of a run."""
    from byheart.evaluation.statistics import FEWEST_CLUSTERS, wilson

    rows = []
    for same in zip(*runs, strict=True):
        first, values = same[0], [row.value for row in same]
        value = fmean(values)
        low, high = student(values)
        if low == high:
            low, high = wilson(value, first.clusters) if first.clusters >= FEWEST_CLUSTERS else (value, value)
        conditions = {**first.conditions, "seeds": len(same)}
        bounds = {"low": max(0.0, low), "high": min(1.0, high)}
        rows.append(replace(first, method=preset, value=value, conditions=conditions, **bounds))
    return rows


def differences(found: Mapping[str, Sequence[Sequence[Any]]]) -> list[Any]:
    """How much better one preset is than another, of the same seeds, for those that both have."""
    rows = []
    for one, other in PAIRS:
        pairs = list(zip(found[one], found[other], strict=False))
        for place in range(len(pairs[0][0]) if pairs else 0):
            values = [ours[place].value - theirs[place].value for ours, theirs in pairs]
            low, high = student(values)
            like, seeds = pairs[0][0][place], {"seeds": len(values)}
            changed = {"method": f"{one} - {other}", "value": fmean(values), "low": low, "high": high}
            rows.append(
                replace(like, **changed, conditions={**like.conditions, **seeds}, bytes=0, seconds=0.0, costs={})
            )
    return rows


def student(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of a number over seeds; the mean twice where there is one, or no spread."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, mean
    half = STUDENT[min(len(values) - 1, len(STUDENT)) - 1] * stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def study(args: argparse.Namespace) -> None:
    """Train and measure everything, and keep the table as it grows."""
    from byheart.evaluation.results import save
    from byheart.model.loading import silence

    silence()
    chosen = choose_ranks(args.model, args.rank, same=args.same_rank)
    done: list[Any] = []
    for train_files, test_files, runs in parts(args):
        base, rows = measure("nothing", test_files, args), []
        found: dict[str, list[list[Any]]] = {preset: [] for preset in chosen}
        for seed in args.seeds:
            for preset, rank in chosen.items():
                out = train(preset, seed, rank, train_files, runs, args)
                found[preset].append(measure(str(out), test_files, args))
                averaged = [average_seeds(preset, runs) for preset, runs in found.items() if runs]
                rows = [row for members in (base, *averaged) for row in with_mean(members)] + differences(found)
                save(args.out, [*done, *rows], **describe(args, chosen))
        done += rows


def parts(args: argparse.Namespace) -> list[tuple[list[str], list[str], Path]]:
    """What is trained on together, what it is tested on, and the folder of its runs."""
    if not args.each:
        return [(args.train, args.test, args.runs)]
    return [([train], [test], args.runs / Path(test).stem) for train, test in zip(args.train, args.test, strict=True)]


def describe(args: argparse.Namespace, chosen: Mapping[str, int]) -> dict[str, Any]:
    """What decides the numbers, and how large each adapter is."""
    runs = {preset: next(args.runs.glob(f"**/{preset}-{args.seeds[0]}/recipe.json"), None) for preset in chosen}
    sizes = {
        preset: json.loads(file.read_text(encoding="utf-8"))["parameters"] for preset, file in runs.items() if file
    }
    names = ["model", "dtype", "seeds", "epochs", "batch", "packed", "learning_rate", "limit", "prompts", "each"]
    names += ["most_records", "pack_tokens", "schedule"]
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
    parser.add_argument("--schedule", default="cosine", choices=["cosine", "constant"], help="of the learning rate")
    parser.add_argument("--most-records", type=int, default=0, help="of each training file, its first; 0 is all")
    parser.add_argument("--pack-tokens", type=int, default=0, help="rows of so many tokens, with --prompts all")
    parser.add_argument("--each", action="store_true", help="train on each file alone, test on the one in its place")
    parser.add_argument("--limit", type=int, default=0, help="items of a test file; 0 is all")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ffn_study", help="folder of all runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "ffn_study.json")
    parser.add_argument("--quick", action="store_true", help="two seeds, one epoch, two items of a test file")
    args = parser.parse_args(arguments)
    if args.each and len(args.train) != len(args.test):
        parser.error(
            f"--each needs a test file for each of the {len(args.train)} of --train; there are {len(args.test)}"
        )
    if 0 < args.limit < FEWEST_ITEMS and not args.quick:
        parser.error(f"--limit {args.limit} says too little; take {FEWEST_ITEMS} or more, or 0 for all")
    vars(args).update(QUICK if args.quick else {})
    study(args)


if __name__ == "__main__":
    main()
