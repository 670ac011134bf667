"""Seeing what the last tokens of a text attend to, while the model reads it.

The attention kernels that the model runs on keep no weights. Those of the observed queries cost one product per layer,
so they are computed beside the kernel, some queries at a time, and only while something observes. This module does not
know methods or models: the attention function of ``byheart.model.attention`` shows it each layer's queries and keys.

Dimensions: B batch, H key-value heads, G query heads for each, N observed queries, T queries, M keys,
W head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.errors import UnsupportedModelError

# How many are computed at a time: 16 MiB in float32.
MOST_SCORES = 1 << 22


@dataclass(frozen=True)
class Observed:
    """What each key received from the last ``rows`` queries: ``layers`` has a (B, H, M) for every layer that ran."""

    rows: int
    greatest: bool = False
    layers: list[Float[Tensor, "B H M"]] = field(default_factory=list)


_active: ContextVar[Observed | None] = ContextVar("observed", default=None)
_queries: ContextVar[list[Tensor] | None] = ContextVar("queries", default=None)


@contextmanager
def observing(rows: int, *, greatest: bool = False) -> Iterator[Observed]:
    """Inside: attention records what each layer's last ``rows`` queries attend to. After: as before.

    What a key receives is the mean over queries and over the query heads of its key-value head, or the ``greatest``.
    """
    seen = Observed(rows, greatest)
    token = _active.set(seen)
    try:
        yield seen
    finally:
        _active.reset(token)


@contextmanager
def observing_queries() -> Iterator[list[Float[Tensor, "B _ T W"]]]:
    """Inside: attention records the queries of every layer that runs, scaled, so that a product with a key is a score.

    After: as before.
    """
    seen: list[Tensor] = []
    token = _queries.set(seen)
    try:
        yield seen
    finally:
        _queries.reset(token)


def show(query: Tensor, key: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None) -> None:
    """Let an observer, if there is one, see a layer; arguments as in ``attention.grouped_attention``."""
    queries, seen = _queries.get(), _active.get()
    if queries is not None:
        queries.append(query * scaling)
    if seen is None:
        return
    query = query[:, :, -seen.rows :]
    mask = causal_mask(query, key) if mask is None else mask[:, :, -query.shape[2] :, : key.shape[2]]
    rows = query.shape[2]
    step = max(1, MOST_SCORES // (query[:, :, 0, 0].numel() * key.shape[2]))
    found: Tensor | None = None
    for start in range(0, rows, step):
        part = slice(start, start + step)
        weights = _probabilities(query[:, :, part], key, mask[:, :, part], scaling=scaling, softcap=softcap)
        some = weights.amax((2, 3)) if seen.greatest else weights.mean((2, 3)) * (weights.shape[3] / rows)
        found = some if found is None else torch.maximum(found, some) if seen.greatest else found + some
    if found is not None:
        seen.layers.append(found)


def _probabilities(
    query: Tensor, key: Tensor, mask: Tensor, *, scaling: float, softcap: float | None
) -> Float[Tensor, "B H G N M"]:
    """What each query gives to each key, in float32."""
    batch, heads, _, width = key.shape
    folded = query.float().reshape(batch, heads, -1, query.shape[2], width)
    scores = torch.matmul(folded, key.float()[:, :, None].mT) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    shown = mask[:, :, None]
    scores = scores.masked_fill(~shown, -torch.inf) if mask.dtype == torch.bool else scores + shown
    return scores.softmax(-1)


def require_observed(layers: Sequence[Tensor], backbone_layers: int, *, name: str) -> None:
    """Raise UnsupportedModelError unless all layers of a model were seen, as the method ``name`` needs it."""
    if len(layers) != backbone_layers:
        raise UnsupportedModelError(
            f"{name} needs a model that runs on byheart's attention, and saw {len(layers)} of {backbone_layers} "
            "layers; open it with Backbone.open, or set its attn_implementation to 'byheart'."
        )


def causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """Which keys each query sees, (1, 1, T, M), where the queries are the last of the keys' tokens."""
    rows, columns = query.shape[2], key.shape[2]
    return torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)[None, None]
