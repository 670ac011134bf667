"""Train what comes with byheart again, from its recipe and its data, and say how far it ends from what is shipped.

    python scripts/reproduce.py                          all that is shipped; hours on two cores
    python scripts/reproduce.py latent-pool --data DIR   one of them, with DIR/train and DIR/eval

Recipes are those of `recipes/`, with the stages that they start from; data are what `byheart data get` builds. Runs go
into `trained/`, and resume. Then both are measured on the same batches, drawn by the recipe from the held-out parts of
its data: the loss of the supervised tokens, in nats per token. The exit status is 1 where a retrained one is more than
DISTANCE worse than the shipped one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byheart.data.mixture import split_weight
from byheart.errors import InputError
from byheart.training.config import TrainingConfig
from byheart.training.settings import flatten

ROOT = Path(__file__).resolve().parent.parent
PRETRAINED = ROOT / "byheart" / "methods" / "pretrained"
DISTANCE = 0.1
BATCHES = 16
# What a recipe starts from lies here when it was trained.
_STAGE = "trained/"


@dataclass(frozen=True)
class Reproduction:
    """A shipped method beside the one that was trained again.

    Args:
        shipped, retrained: mean losses on the same held-out batches, in nats per token.
        error: the standard error of their difference, over batches.
        other: what decided the two runs and is not the same: names of settings, and of data sets with other records.
    """

    name: str
    shipped: float
    retrained: float
    error: float
    other: Sequence[str]

    @property
    def is_within(self) -> bool:
        """Whether the retrained one is as good, but for the distance."""
        return self.retrained - self.shipped <= DISTANCE

    def __str__(self) -> str:
        verdict = "within" if self.is_within else "beyond"
        differs = f"; not the same: {', '.join(self.other)}" if self.other else ""
        return (
            f"{self.name}: held-out loss {self.retrained:.3f}, shipped {self.shipped:.3f}, difference "
            f"{self.retrained - self.shipped:+.3f} (standard error {self.error:.3f}), {verdict} {DISTANCE:g}{differs}"
        )


def reproduce(
    name: str,
    *,
    data: Path,
    out: Path,
    recipes: Path = ROOT / "recipes",
    shipped: Path = PRETRAINED,
    **changes: Any,
) -> Reproduction:
    """Train a shipped method again and measure both.

    Args:
        data: the folder with ``train`` and ``eval``.
        out: the folder for the runs.
        changes: of settings, for every stage; for tests.

    Raises InputError where data are missing.
    """
    for stage in stages(name, recipes):
        config = configure(recipes / f"{stage}.toml", data, out, **changes)
        config.run(out / stage)
    losses = [measure(config, str(folder)) for folder in (shipped / name, out / name)]
    differences = [after - before for before, after in zip(*losses, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    before, after = map(statistics.fmean, losses)
    return Reproduction(name, before, after, error, compare_records(shipped / name, out / name))


def stages(name: str, recipes: Path) -> Iterator[str]:
    """The recipes that lead to one, itself the last. A stage whose recipe is not there is looked for as it is."""
    start = TrainingConfig.of(recipes / f"{name}.toml").method
    if start.startswith(_STAGE):
        yield from stages(start.removeprefix(_STAGE), recipes)
    yield name


def configure(recipe: Path, data: Path, out: Path, **changes: Any) -> TrainingConfig:
    """A recipe with its data in a folder, measured on the held-out parts. Raises InputError where data are missing."""
    written = TrainingConfig.of(recipe)
    sources = [split_weight(source) for source in written.sources.data]
    train = [f"{data / path}:{weight:g}" for path, weight in sources]
    held_out = [f"{data / 'eval' / Path(path).name}:{weight:g}" for path, weight in sources]
    missing = [path for path, _ in map(split_weight, [*train, *held_out]) if not Path(path).is_file()]
    if missing:
        names = " ".join(dict.fromkeys(Path(path).stem for path in missing))
        raise InputError(f"There is no {', '.join(missing)}. Build it: byheart data get {names} --to {data}")
    method = written.method
    start = str(out / method.removeprefix(_STAGE)) if method.startswith(_STAGE) else method
    return TrainingConfig.of(recipe, method=start, data=train, held_out=held_out, **changes)


def measure(config: TrainingConfig, method: str) -> list[float]:
    """The loss of a trained method on each held-out batch of a recipe."""
    from byheart.training.run import measure_held_out

    return measure_held_out(config, method, BATCHES)


def compare_records(shipped: Path, retrained: Path) -> list[str]:
    """What decided two runs and is not the same, by the records beside them."""
    before, after = (
        json.loads((folder / "recipe.json").read_text(encoding="utf-8")) for folder in (shipped, retrained)
    )
    kept = flatten(TrainingConfig()).keys() - {"data", "save_every", "method"}
    other = sorted(name for name in kept & before.keys() & after.keys() if before[name] != after[name])
    known = {name: digest for name, digest, _ in before["data"]}
    return [*other, *(name for name, digest, _ in after["data"] if known.get(name) != digest)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Reproduce what is asked for; 1 where one ends beyond the distance, or cannot be trained."""
    shipped = sorted(path.parent.name for path in PRETRAINED.glob("*/recipe.json"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(shipped)}; all without it")
    parser.add_argument("--data", type=Path, default=Path("."), help="folder with train/ and eval/")
    parser.add_argument("--out", type=Path, default=Path("trained"), help="folder for the runs, which resume")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(shipped))
    if unknown:
        parser.error(f"there is no shipped {', '.join(unknown)}; there are {', '.join(shipped)}")
    failed = 0
    for name in chosen.names or shipped:
        try:
            found = reproduce(name, data=chosen.data, out=chosen.out)
        except InputError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = 1
            continue
        print(found, flush=True)
        failed |= not found.is_within
    return failed


if __name__ == "__main__":
    sys.exit(main())
