"""Intervals of numbers: by bootstrap samples of what was drawn, and of shares near 0 and 1 by Wilson's formula.

A cluster is what was drawn at once and says nothing of the others: an item with all of its questions.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

FEWEST_CLUSTERS = 10
"""Fewer say too little of how they differ, so that their numbers have no interval."""
_DRAWS = 1000
# Of fewer hits, or fewer misses, bootstrap samples hold too few for their quantiles to be bounds.
_FEW_HITS = 10
# Of fewer still they say nothing of how alike the answers of one cluster are.
_FEWEST_HITS = 5
_NORMAL = 1.959963984540054
_NO_SPREAD = 1e-12


def draws(count: int) -> Int[Tensor, "D N"]:
    """Which of ``count`` items each bootstrap sample has; always the same ones."""
    return torch.randint(count, (_DRAWS, count), generator=torch.Generator().manual_seed(0))


def interval(values: Float[Tensor, " D"]) -> tuple[float, float]:
    """The bounds between which 95 % of the samples' values lie."""
    low, high = torch.quantile(values.double(), torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count`` independent draws; at 0 and 1 it has a width too."""
    squared = _NORMAL**2 / count
    centre, half = share + squared / 2, _NORMAL * math.sqrt(share * (1 - share) / count + squared / (4 * count))
    low, high = (centre - half) / (1 + squared), (centre + half) / (1 + squared)
    return min(max(low, 0.0), share), max(min(high, 1.0), share)


def is_near_an_end(share: float, answers: int) -> bool:
    """Whether hits or misses among so many answers are few."""
    return min(share, 1 - share) * answers < _FEW_HITS


def wilson_of_clusters(share: float, answers: int, clusters: int, spread: float) -> tuple[float, float]:
    """Wilson's interval with as many draws as the answers are worth (Korn and Graubard 1998; Dean and Pagano 2015).

    That is how many independent answers would vary as the clusters do: no fewer than there are clusters, no more than
    there are answers. Where hits or misses are fewest, it is the clusters: too wide rather than too narrow.

    Args:
        spread: the standard deviation of the share over bootstrap samples of the clusters.
    """
    if min(share, 1 - share) * answers < _FEWEST_HITS:
        return wilson(share, clusters)
    worth = share * (1 - share) / max(spread**2, _NO_SPREAD)
    return wilson(share, min(max(worth, clusters), answers))


def bounds(value: float, sampled: Float[Tensor, " D"], clusters: int, *, answers: int = 0) -> tuple[float, float]:
    """The bounds of a number's 95 % interval, or twice the number itself where it has none.

    It has none over fewer than ``FEWEST_CLUSTERS``, and where no sample differs from another. A share of few hits or
    few misses has Wilson's.

    Args:
        sampled: the number of each bootstrap sample of the clusters.
        answers: of which the number is the share of hits, each of them all or nothing; 0 where it is no such share.
    """
    if clusters < FEWEST_CLUSTERS:
        return value, value
    if answers and is_near_an_end(value, answers):
        return wilson_of_clusters(value, answers, clusters, sampled.double().std().item())
    low, high = interval(sampled)
    return (value, value) if high - low < _NO_SPREAD else (low, high)
