"""How long a latent pool keeps a text: the gap that it still closes after n more texts, beside the published law.

    python benchmarks/retention.py --data ../shared/data/eval/squad.jsonl

Each window's text is written, then n texts of other windows, 256 tokens each, and the window's question is asked. The
law is (1 - K / N)^n of what is closed at n = 0: each write drops K of N rows by chance (MemoryLLM, arXiv 2402.04624,
section 3.1.2), here only once the pool is full. Writes ``results/retention.json`` and the table of docs/measures.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import byheart
from byheart.builders import Mixture, Weighted
from byheart.episode import Batch, Episode, collate
from byheart.gap import closed
from byheart.memories.latent_pool import LatentPool
from byheart.memory import Memory
from byheart.models import silence
from byheart.rows import versions
from byheart.state import State
from byheart.tuning import token_losses

ROOT = Path(__file__).resolve().parent
AFTER = (0, 1, 2, 4, 7, 10, 15, 20, 30)
SEGMENTS, TOKENS = 4, 64


@dataclass(frozen=True)
class Point:
    """The gap closed after so many later writes, its 95 % interval, and what the law says."""

    dataset: str
    after: int
    value: float
    low: float
    high: float
    law: float


def losses(memory: Memory, states: Sequence[State], batch: Batch) -> Tensor:
    """Summed losses (B,) of each window's target behind its own state."""
    own = memory.backbone
    with own.reading([memory.read(state) for state in states], room=batch.target.shape[1]) as cache:
        hidden = own.hidden(batch.target, cache=cache)
    row, column = batch.labels[:, 1:].nonzero(as_tuple=True)
    each = token_losses(own, hidden[row, column], batch.target[row, column + 1]).cross_entropy
    return each.new_zeros(len(states)).index_add(0, row, each)


def text_of(episode: Episode) -> Tensor:
    return torch.cat(episode.segments)[None]


@torch.no_grad()
def after_each(memory: Memory, episodes: Sequence[Episode], start: int, size: int, after: Sequence[int]) -> Tensor:
    """Losses (len(after), size) of the windows from ``start`` on, after so many later writes."""
    batch = collate(episodes[start : start + size])
    states = memory.write_many([memory.init()] * size, [text_of(each) for each in episodes[start : start + size]])
    found = []
    for written in range(max(after) + 1):
        if written:
            # Distance grows with n, so that no window meets the same text twice.
            others = [episodes[(start + row + size * written) % len(episodes)] for row in range(size)]
            states = memory.write_many(states, [text_of(each) for each in others])
        if written in after:
            found.append(losses(memory, states, batch))
    return torch.stack(found)


def curve(memory: LatentPool, data: str, windows: int, size: int, after: Sequence[int]) -> list[Point]:
    """The points of one data set."""
    opened = byheart.load(memory.backbone, memory="full")
    source = Weighted.read(data)
    drawn = Mixture(opened, [source], segments=[SEGMENTS], segment_tokens=TOKENS, batch=size)
    episodes = [drawn.episode(index, SEGMENTS) for index in range(windows)]
    nothing = byheart.load(memory.backbone, memory="nothing").memory
    starts = range(0, windows - size + 1, size)
    name = Path(data).stem
    kept = torch.cat([after_each(memory, episodes, start, size, after) for start in track(starts, name)], dim=1)
    floor, ceiling = (
        torch.cat([after_each(each, episodes, start, size, [0])[0] for start in starts])
        for each in (nothing, opened.memory)
    )
    picks = torch.randint(len(floor), (1000, len(floor)), generator=torch.Generator().manual_seed(0))
    values = closed(floor, ceiling, kept).tolist()
    share = 1 - 1 / memory.blocks
    points = []
    for n, value, each in zip(after, values, kept, strict=True):
        draws = closed(floor[picks], ceiling[picks], each[picks])
        low, high = torch.quantile(draws, torch.tensor([0.025, 0.975])).tolist()
        points.append(Point(name, n, value, low, high, values[0] * share**n))
    return points


def table(file: Path) -> str:
    """The result file as a table."""
    result = json.loads(file.read_text(encoding="utf-8"))
    lines = ["| data | later writes | gap closed | 95 % | law |", "|---|---|---|---|---|"]
    for point in result["points"]:
        span = f"{point['low']:.2f} to {point['high']:.2f}"
        lines.append(f"| {point['dataset']} | {point['after']} | {point['value']:.2f} | {span} | {point['law']:.2f} |")
    made = f"Made by `python benchmarks/retention.py` ({result['windows']} windows a row) into `{file.name}`."
    return "\n".join([*lines, "", made])


def put(lines: str) -> None:
    """Rewrite docs/measures.md between its comments. Raises ValueError where it has none."""
    page = ROOT.parent / "docs" / "measures.md"
    before, rest = page.read_text(encoding="utf-8").split("<!-- retention -->\n")
    _, after = rest.split("<!-- /retention -->")
    page.write_text(f"{before}<!-- retention -->\n{lines}\n<!-- /retention -->{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="JSON lines; repeatable")
    parser.add_argument("--memory", default="latent-pool", help="the shipped pool, or a folder of a trained one")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "retention.json")
    chosen = parser.parse_args()
    silence()
    memory = byheart.load(chosen.model, memory=chosen.memory).memory
    if not isinstance(memory, LatentPool):
        parser.error("--memory must be a latent pool")
    points: list[Point] = []
    for data in chosen.data:
        points += curve(memory, data, chosen.windows, chosen.batch, AFTER)
        about = {"memory": memory.options(), "windows": chosen.windows, "versions": versions()}
        result = {**about, "points": [vars(point) for point in points]}
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    Console().print(table(chosen.out))
    put(table(chosen.out))
    put(table(chosen.out))


if __name__ == "__main__":
    main()
