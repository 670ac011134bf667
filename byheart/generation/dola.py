"""DoLa: the last layer's distribution against an earlier layer's (Chuang et al. 2023, arXiv 2309.03883).

Dimensions: B batch, C candidate layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.errors import UsageError

_KEPT_SHARE = 0.1
_MOST_LAYERS = 20


def candidate_layers(dola: str | Sequence[int], depth: int) -> tuple[int, ...]:
    """Indices from 0 of layers whose outputs are compared: those of a published bucket, or the given ones.

    A bucket is every second hidden state of the upper or lower half, or of 20 layers at most: 16, 18, ... 30 of 32 are
    ``high``. Published numbers count the embeddings as state 0, so state n is the output of layer n - 1. Embeddings
    are no layer's output: ``low`` begins with state 2, as in transformers where the head is tied to them.

    Raises UsageError for a word that is neither ``high`` nor ``low``, and for a layer that is not below the last.
    """
    if isinstance(dola, str):
        size = min(depth - depth // 2, _MOST_LAYERS)
        buckets = {"high": range(depth - size, depth, 2), "low": range(2, min(depth // 2, _MOST_LAYERS), 2)}
        if dola not in buckets:
            raise UsageError(f"dola must be high, low or a list of layers; it is '{dola}'.")
        return tuple(state - 1 for state in buckets[dola] if state > 0) or (0,)
    if not dola or any(not 0 <= layer < depth - 1 for layer in dola):
        raise UsageError(f"dola's layers must lie between 0 and {depth - 2}; they are {list(dola)}.")
    return tuple(sorted(set(dola)))


def dola_scores(mature: Float[Tensor, "B V"], premature: Float[Tensor, "C B V"]) -> Float[Tensor, "B V"]:
    """DoLa's scores from log-probabilities of the last layer and of C candidates; implausible tokens get -inf.

    The candidate that differs most from the last layer, by Jensen-Shannon divergence, is subtracted.
    """
    middle = torch.logaddexp(mature[None], premature) - torch.log(torch.tensor(2.0))
    divergence = 0.5 * (
        (mature.exp()[None] * (mature[None] - middle)).sum(-1) + (premature.exp() * (premature - middle)).sum(-1)
    )
    farthest = divergence.argmax(0)
    chosen = premature.gather(0, farthest[None, :, None].expand(1, -1, premature.shape[-1]))[0]
    plausible = mature >= mature.amax(-1, keepdim=True) + torch.log(torch.tensor(_KEPT_SHARE))
    return torch.where(plausible, mature - chosen, float("-inf"))
