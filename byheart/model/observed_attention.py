"""Seeing what the last tokens of a text attend to, while the model reads it.

The attention kernels that the model runs on keep no weights. Those of a few queries cost one small product per layer,
so they are computed beside the kernel, and only while something observes. This module does not know methods or models:
the attention function of ``byheart.model.attention`` shows it each layer's queries and keys.

Dimensions: B batch, H key-value heads, G query heads for each, N observed queries, T queries, M keys,
W head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Observed:
    """What each key received from the last ``rows`` queries: ``layers`` has a (B, H, M) for every layer that ran."""

    rows: int
    layers: list[Float[Tensor, "B H M"]] = field(default_factory=list)


_active: ContextVar[Observed | None] = ContextVar("observed", default=None)


@contextmanager
def observing(rows: int) -> Iterator[Observed]:
    """Inside: attention records what each layer's last ``rows`` queries attend to. After: as before."""
    seen = Observed(rows)
    token = _active.set(seen)
    try:
        yield seen
    finally:
        _active.reset(token)


def show(query: Tensor, key: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None) -> None:
    """Let an observer, if there is one, see a layer; arguments as in ``attention.grouped_attention``.

    What each key receives is the mean over queries and over the query heads of its key-value head.
    """
    seen = _active.get()
    if seen is None:
        return
    query = query[:, :, -seen.rows :]
    mask = causal_mask(query, key) if mask is None else mask[:, :, -query.shape[2] :, : key.shape[2]]
    batch, heads, _, width = key.shape
    folded = query.float().reshape(batch, heads, -1, query.shape[2], width)
    scores = torch.matmul(folded, key.float()[:, :, None].mT) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    shown = mask[:, :, None]
    scores = scores.masked_fill(~shown, -torch.inf) if mask.dtype == torch.bool else scores + shown
    seen.layers.append(scores.softmax(-1).mean((2, 3)))


def causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """Which keys each query sees, (1, 1, T, M), where the queries are the last of the keys' tokens."""
    rows, columns = query.shape[2], key.shape[2]
    return torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)[None, None]
