"""How much of a text a memory keeps, in the model's own terms: the gap that it closes between no text and the full one.

    gap closed = (loss without the text - loss with the memory) / (loss without the text - loss with the full text)

0 is a memory that helps nothing, 1 is one as good as the text itself. Every memory sees the same windows: a history is
written as one text, and the tokens after it (lm), or the answer to a question about it (qa), are predicted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byheart.builders import Mixture, Weighted
from byheart.episode import Batch, collate
from byheart.memory import Memory, is_learned
from byheart.models import DEFAULT
from byheart.session import load
from byheart.state import nbytes
from byheart.tuning import token_losses

_FLOOR, _CEILING = "nothing", "full"
_DRAWS = 1000


@dataclass(frozen=True)
class Row:
    """One number: ``value`` over ``n`` windows, with the bounds of its 95 % interval.

    ``bytes`` is what a session keeps, ``seconds`` what writing a history takes; both the mean over windows.
    """

    task: str
    dataset: str
    memory: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Scores:
    """What one memory loses on N windows: summed losses (N,), supervised tokens (N,), bytes and seconds a window."""

    losses: Tensor
    tokens: Tensor
    bytes: int
    seconds: float


def gap(
    memories: Sequence[str],
    data: Sequence[str],
    *,
    model: str = DEFAULT,
    windows: int = 64,
    history: int = 4,
    segment_tokens: int = 64,
    target_tokens: int = 64,
    batch: int = 8,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> list[Row]:
    """The gap that each memory closes on each data set, and its loss.

    Args:
        memories: mechanisms, or folders of trained ones.
        data: ``PATH`` or ``PATH:weight``; weights count in the rows of all data sets together.
        history: segments that are written, of ``segment_tokens`` each.
        options: of the mechanisms; trained ones have their own.
    """
    opened = load(model, dtype=dtype, device=device)
    made = {
        name: load(opened.backbone, memory=name, tokenizer=opened.tokenizer, **({} if is_learned(name) else options))
        for name in memories
    }
    each = {_FLOOR: load(opened.backbone, memory=_FLOOR, tokenizer=opened.tokenizer), _CEILING: opened, **made}
    sources = [Weighted.read(source) for source in data]
    shape = {"batch": batch, "segment_tokens": segment_tokens, "target_tokens": target_tokens, "seed": seed}
    scores: list[dict[str, Scores]] = []
    for number, source in enumerate(sources):
        drawn = Mixture(opened, [source], segments=[history], **shape)
        episodes = [drawn.episode(index, history) for index in range(windows)]
        batches = [collate(episodes[start : start + batch]) for start in range(0, windows, batch)]
        found: dict[str, Scores] = {}
        for name, session in each.items():
            found[name] = score(session.memory, batches)
            progress(number * len(each) + len(found), len(sources) * len(each))
        scores.append(found)
    names = [Path(source.data.source).stem for source in sources]
    rows = [row for name, found in zip(names, scores, strict=True) for row in _rows(name, [found], [1.0])]
    return rows if len(sources) == 1 else rows + _rows("all", scores, [source.weight for source in sources])


@torch.no_grad()
def score(memory: Memory, batches: Sequence[Batch]) -> Scores:
    """Write each episode's segments as one text, read, and sum the losses of its supervised tokens."""
    losses, tokens, kept, seconds, own = [], [], 0, 0.0, memory.backbone
    for batch in (each.to(own.device) for each in batches):
        episodes = batch.target.shape[0]
        texts = [row[real][None] for row, real in zip(batch.segments, batch.counts, strict=True)]
        start = time.perf_counter()
        states = memory.write_many([memory.init()] * episodes, texts)
        seconds += time.perf_counter() - start
        kept += sum(map(nbytes, states))
        with own.reading([memory.read(state) for state in states], room=batch.target.shape[1]) as cache:
            hidden = own.hidden(batch.target, cache=cache)
        row, column = batch.labels[:, 1:].nonzero(as_tuple=True)
        each = token_losses(own, hidden[row, column], batch.target[row, column + 1]).cross_entropy
        losses.append(each.new_zeros(episodes).index_add(0, row, each).cpu())
        tokens.append(batch.labels.sum(1).cpu())
    counted = torch.cat(tokens)
    return Scores(torch.cat(losses), counted, kept // len(counted), seconds / len(counted))


def closed(floor: Tensor, ceiling: Tensor, losses: Tensor) -> Tensor:
    """The gap closed, from losses (..., N) of the same windows."""
    return (floor - losses).sum(-1) / (floor - ceiling).sum(-1)


def _rows(dataset: str, scores: Sequence[dict[str, Scores]], weights: Sequence[float]) -> list[Row]:
    def joined(name: str, part: str) -> Tensor:
        return torch.cat([getattr(each[name], part) * weight for each, weight in zip(scores, weights, strict=True)])

    windows = len(joined(_FLOOR, "losses"))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(windows, (_DRAWS, windows), generator=generator)
    floor, ceiling = (joined(name, "losses") for name in (_FLOOR, _CEILING))
    rows = []
    for name in scores[0]:
        losses, tokens = joined(name, "losses"), joined(name, "tokens")
        costs = round(sum(each[name].bytes for each in scores) / len(scores)), scores[0][name].seconds
        means = losses.sum() / tokens.sum(), losses[drawn].sum(-1) / tokens[drawn].sum(-1)
        rows.append(_row(dataset, name, "loss", *means, windows, *costs))
        if name not in (_FLOOR, _CEILING):
            shares = closed(floor, ceiling, losses), closed(floor[drawn], ceiling[drawn], losses[drawn])
            rows.append(_row(dataset, name, "gap closed", *shares, windows, *costs))
    return rows


def _row(
    dataset: str, memory: str, metric: str, value: Tensor, draws: Tensor, n: int, kept: int, seconds: float
) -> Row:
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975])).tolist()
    return Row("gap", dataset, memory, metric, value.item(), low, high, n, kept, seconds)
