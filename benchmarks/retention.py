"""How long a latent pool keeps a text: the gap that it still closes after n more texts, beside the law of the pool.

    python benchmarks/retention.py --data squad.jsonl               into a fresh pool
    python benchmarks/retention.py --data squad.jsonl --before 8    into one that other texts have filled, as published
    python benchmarks/retention.py --report                         the table and the figure alone, from the result file

Each window's text is written, then n texts of other windows, 256 tokens each, and the window's question is asked; it is
also asked of a pool that was written the next window's text instead, because a pool of any text helps with the style
of answers. What is kept is the difference. The law is the share of the text's slots that is left by then, see
``byheart.protocol.forgetting``, of the difference at n = 0: a write drops slots by chance once the pool is full
(MemoryLLM, arXiv 2402.04624, section 3.1.2), and not before. Writes
``results/retention.json`` and the table of docs/explanation/measures.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import byheart
from byheart.data.mixture import Mixture, Weighted
from byheart.evaluation.runner import target_losses
from byheart.evaluation.statistics import bounds, draws
from byheart.evaluation.tasks.gap import closed
from byheart.methods.latent_pool import LatentPool
from byheart.model.loading import silence
from byheart.protocol.episode import Batch, Episode, collate
from byheart.protocol.forgetting import share_left
from byheart.protocol.method import Method
from byheart.protocol.segments import split_segments
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

    ``kept`` is the difference, with its 95 % interval over windows and what the law says of it.
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
    method: Method, episodes: Sequence[Episode], later: Sequence[Episode], after: Sequence[int], before: int = 0
) -> tuple[Tensor, Tensor]:
    """Losses (len(after), size) of windows after so many ``later`` writes, and those by the next window's pool.

    Args:
        before: writes of other texts before the windows' own, taken from the end of ``later``.
    """
    batch, size = collate(episodes), len(episodes)
    states = [method.init()] * size
    for written in range(before):
        states = method.write_many(states, [text_of(later[-1 - (row + written) % len(later)]) for row in range(size)])
    states = method.write_many(states, [text_of(each) for each in episodes])
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


def curve(method: LatentPool, data: str, windows: int, size: int, after: Sequence[int], before: int = 0) -> list[Point]:
    """The points of one data set."""
    opened = byheart.load(method.backbone, method="full")
    drawn = Mixture(opened.encoder, [Weighted.read(data)], segments=[SEGMENTS], segment_tokens=TOKENS, batch=size)
    # As many later texts as a batch's rows and their writes need, so that none comes twice, nor a window's own.
    needed = size + max(after) + (size + before if before else 0)
    episodes = [drawn.episode(index, SEGMENTS) for index in range(windows + needed)]
    later = episodes[windows:]
    nothing = byheart.load(method.backbone, method="nothing").method
    groups = [episodes[start : start + size] for start in range(0, windows - size + 1, size)]
    name = Path(data).stem
    pairs = [after_each(method, group, later, after, before) for group in track(groups, name)]
    own, other = (torch.cat(each, dim=1) for each in zip(*pairs, strict=True))
    floor, ceiling = (
        torch.cat([after_each(each, group, later, [0])[0][0] for group in groups]) for each in (nothing, opened.method)
    )
    picks = draws(len(floor))
    values, others = (share_closed(floor, ceiling, each).tolist() for each in (own, other))
    points = []
    for place, n in enumerate(after):
        sampled = share_closed(floor[picks], ceiling[picks], own[place][picks])
        sampled = sampled - share_closed(floor[picks], ceiling[picks], other[place][picks])
        kept, expected = values[place] - others[place], (values[0] - others[0]) * law(vars(method), before, n)
        low, high = bounds(kept, sampled, len(floor))
        points.append(Point(name, n, values[place], others[place], kept, low, high, expected))
    return points


def table(file: Path) -> str:
    """The result file as a table."""
    result = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        "| data | later writes | gap closed | by another text | difference | 95 % | law | windows |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in result["points"]:
        told = [point["value"], point["other"], point["kept"]]
        interval = f"{point['low']:.2f} to {point['high']:.2f}" if point["low"] < point["high"] else "-"
        cells = [*(f"{each:.2f}" for each in told), interval, f"{point['law']:.2f}"]
        lines.append(f"| {point['dataset']} | {point['after']} | {' | '.join(cells)} | {result['windows']} |")
    data = " ".join(
        f"--data eval/{name}.jsonl" for name in dict.fromkeys(point["dataset"] for point in result["points"])
    )
    before = f" --before {result['before']}" if result.get("before") else ""
    command = f"python benchmarks/retention.py {data} --windows {result['windows']}{before}"
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


def law(options: Mapping[str, Any], before: int, after: int) -> float:
    """What is left of a text after so many others, as a share of what was left after none.

    Args:
        options: of the pool that was measured: a text may be written in several pieces, each of which is a write.
    """
    text = torch.zeros(1, SEGMENTS * TOKENS, dtype=torch.long)
    pieces = sum(1 for _ in split_segments(text, longest=options["longest"], shortest=options["shortest"]))

    def left(later: int) -> float:
        writes = [(before * pieces + piece, (later + 1) * pieces - 1 - piece) for piece in range(pieces)]
        return sum(share_left(options["blocks"], before=first, later=last) for first, last in writes) / pieces

    return left(after) / left(0)


def redraw_law(file: Path) -> None:
    """Write the law of the pool that was measured beside the stored points."""
    result = json.loads(file.read_text(encoding="utf-8"))
    first = {point["dataset"]: point["kept"] for point in result["points"] if not point["after"]}
    for point in result["points"]:
        point["law"] = first[point["dataset"]] * law(result["method"], result.get("before", 0), point["after"])
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def show(file: Path) -> None:
    """Rewrite the page between its comments, and its figure. Raises ValueError where it has no comments."""
    page = ROOT.parent / "docs" / "explanation" / "measures.md"
    (page.parent / FIGURE).write_text(drawn(file), encoding="utf-8")
    lines = f"![what is kept of a text, by later writes]({FIGURE})\n\n{table(file)}"
    before, rest = page.read_text(encoding="utf-8").split("<!-- retention -->\n")
    _, after = rest.split("<!-- /retention -->")
    page.write_text(f"{before}<!-- retention -->\n{lines}\n<!-- /retention -->{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure if asked to, then write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], help="JSON lines; repeatable")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--method", default="latent-pool", help="the shipped pool, or a folder of a trained one")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--before", type=int, default=0, help="texts that are written first; with 8 the pool is full")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "retention.json")
    chosen = parser.parse_args(arguments)
    if chosen.report:
        redraw_law(chosen.out)
    else:
        measure(parser, chosen)
    Console().print(table(chosen.out))
    show(chosen.out)


def measure(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Measure all data sets, and keep the points as they come."""
    if not chosen.data:
        parser.error("give --data, or --report for the table and the figure alone")
    silence()
    method = byheart.load(chosen.model, method=chosen.method).method
    if not isinstance(method, LatentPool):
        parser.error("--method must be a latent pool")
    points: list[Point] = []
    for data in chosen.data:
        points += curve(method, data, chosen.windows, chosen.batch, AFTER, chosen.before)
        counts = {"windows": chosen.windows, "before": chosen.before}
        about = {"method": method.options(), **counts, "versions": versions()}
        result = {**about, "points": [vars(point) for point in points]}
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
