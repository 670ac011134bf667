"""How long a latent pool keeps a text: the gap that it still closes after n more texts, beside the published law.

    python benchmarks/retention.py --data squad.jsonl

Each window's text is written, then n texts of other windows, 256 tokens each, and the window's question is asked; it is
also asked of a pool that was written the next window's text instead, because a pool of any text helps with the style
of answers. What is kept is the difference. The law is (1 - K / N)^n of the difference at n = 0: each write drops K of N
rows by chance (MemoryLLM, arXiv 2402.04624, section 3.1.2), here only once the pool is full. Writes
``results/retention.json`` and the table of docs/explanation/measures.md.
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
from byheart.data.mixture import Mixture, Weighted
from byheart.evaluation.runner import target_losses
from byheart.evaluation.tasks.gap import closed
from byheart.methods.latent_pool import LatentPool
from byheart.model.loading import silence
from byheart.protocol.episode import Batch, Episode, collate
from byheart.protocol.method import Method
from byheart.protocol.state import State
from byheart.provenance import versions
from byheart.reports.plots import Line, curves
from byheart.reports.runs import group

ROOT = Path(__file__).resolve().parent
FIGURE = "retention.svg"
AFTER = (0, 1, 2, 4, 7, 10, 15, 20, 30)
SEGMENTS, TOKENS = 4, 64


@dataclass(frozen=True)
class Point:
    """The gap closed after so many later writes, by the text and by another one in its place.

    ``kept`` is the difference, with its 95 % interval and what the law says of it.
    """

    dataset: str
    after: int
    value: float
    other: float
    kept: float
    low: float
    high: float
    law: float


def losses(method: Method, states: Sequence[State], batch: Batch) -> Tensor:
    """Summed losses (B,) of each window's target after its own state."""
    return target_losses(method.backbone, [method.read(state) for state in states], batch)


def text_of(episode: Episode) -> Tensor:
    return torch.cat(episode.segments)[None]


@torch.no_grad()
def after_each(
    method: Method, episodes: Sequence[Episode], later: Sequence[Episode], after: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Losses (len(after), size) of windows after so many ``later`` writes, and those by the next window's pool."""
    batch, size = collate(episodes), len(episodes)
    states = method.write_many([method.init()] * size, [text_of(each) for each in episodes])
    own, other = [], []
    for written in range(max(after) + 1):
        if written:
            others = [later[(row + written) % len(later)] for row in range(size)]
            states = method.write_many(states, [text_of(each) for each in others])
        if written in after:
            own.append(losses(method, states, batch))
            other.append(losses(method, [*states[1:], states[0]], batch))
    return torch.stack(own), torch.stack(other)


def share_closed(floor: Tensor, ceiling: Tensor, losses: Tensor) -> Tensor:
    """The gap closed, from losses (..., N) of the same windows."""
    return closed(floor.sum(-1), ceiling.sum(-1), losses.sum(-1))


def curve(method: LatentPool, data: str, windows: int, size: int, after: Sequence[int]) -> list[Point]:
    """The points of one data set."""
    opened = byheart.load(method.backbone, method="full")
    drawn = Mixture(opened.encoder, [Weighted.read(data)], segments=[SEGMENTS], segment_tokens=TOKENS, batch=size)
    # As many later texts as a batch's rows and their writes need, so that none comes twice, nor a window's own.
    episodes = [drawn.episode(index, SEGMENTS) for index in range(windows + size + max(after))]
    later = episodes[windows:]
    nothing = byheart.load(method.backbone, method="nothing").method
    groups = [episodes[start : start + size] for start in range(0, windows - size + 1, size)]
    name = Path(data).stem
    pairs = [after_each(method, group, later, after) for group in track(groups, name)]
    own, other = (torch.cat(each, dim=1) for each in zip(*pairs, strict=True))
    floor, ceiling = (
        torch.cat([after_each(each, group, later, [0])[0][0] for group in groups]) for each in (nothing, opened.method)
    )
    picks = torch.randint(len(floor), (1000, len(floor)), generator=torch.Generator().manual_seed(0))
    values, others = (share_closed(floor, ceiling, each).tolist() for each in (own, other))
    share = 1 - 1 / method.blocks
    points = []
    for place, n in enumerate(after):
        draws = share_closed(floor[picks], ceiling[picks], own[place][picks])
        draws = draws - share_closed(floor[picks], ceiling[picks], other[place][picks])
        low, high = torch.quantile(draws, torch.tensor([0.025, 0.975])).tolist()
        kept, law = values[place] - others[place], (values[0] - others[0]) * share**n
        points.append(Point(name, n, values[place], others[place], kept, low, high, law))
    return points


def table(file: Path) -> str:
    """The result file as a table."""
    result = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        "| data | later writes | gap closed | by another text | difference | 95 % | law |",
        "|---|---|---|---|---|---|---|",
    ]
    for point in result["points"]:
        told = [point["value"], point["other"], point["kept"]]
        cells = [*(f"{each:.2f}" for each in told), f"{point['low']:.2f} to {point['high']:.2f}", f"{point['law']:.2f}"]
        lines.append(f"| {point['dataset']} | {point['after']} | {' | '.join(cells)} |")
    data = " ".join(
        f"--data eval/{name}.jsonl" for name in dict.fromkeys(point["dataset"] for point in result["points"])
    )
    command = f"python benchmarks/retention.py {data} --windows {result['windows']}"
    made = f"Made by `{command}` into `benchmarks/results/{file.name}`."
    return "\n".join([*lines, "", made])


def drawn(file: Path) -> str:
    """The differences and the law, as SVG."""
    by_data = group(json.loads(file.read_text(encoding="utf-8"))["points"], lambda point: str(point["dataset"]))
    lines = []
    for style, (data, points) in enumerate(by_data.items()):
        measured = [(point["after"], *(point[key] for key in ("kept", "low", "high"))) for point in points]
        law = [(point["after"], *(point["law"],) * 3) for point in points]
        lines += [Line(data, style, measured), Line(data, style, law, law=True)]
    return curves(lines, metric="share of the gap", at="later writes").svg


def show(file: Path) -> None:
    """Rewrite the page between its comments, and its figure. Raises ValueError where it has no comments."""
    page = ROOT.parent / "docs" / "explanation" / "measures.md"
    (page.parent / FIGURE).write_text(drawn(file), encoding="utf-8")
    lines = f"![what is kept of a text, by later writes]({FIGURE})\n\n{table(file)}"
    before, rest = page.read_text(encoding="utf-8").split("<!-- retention -->\n")
    _, after = rest.split("<!-- /retention -->")
    page.write_text(f"{before}<!-- retention -->\n{lines}\n<!-- /retention -->{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="JSON lines; repeatable")
    parser.add_argument("--method", default="latent-pool", help="the shipped pool, or a folder of a trained one")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "retention.json")
    chosen = parser.parse_args()
    silence()
    method = byheart.load(chosen.model, method=chosen.method).method
    if not isinstance(method, LatentPool):
        parser.error("--method must be a latent pool")
    points: list[Point] = []
    for data in chosen.data:
        points += curve(method, data, chosen.windows, chosen.batch, AFTER)
        about = {"method": method.options(), "windows": chosen.windows, "versions": versions()}
        result = {**about, "points": [vars(point) for point in points]}
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    Console().print(table(chosen.out))
    show(chosen.out)


if __name__ == "__main__":
    main()
