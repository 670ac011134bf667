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


def candidate_layers(dola: str | Sequence[int], depth: int) -> tuple[int, ...]:
    """Indices of layers whose outputs are compared: every second one of the upper or lower half, or the given ones.

    Raises UsageError for a word that is neither ``high`` nor ``low``, and for a layer that is not below the last.
    """
    if isinstance(dola, str):
        halves = {"high": range(depth // 2, depth - 1, 2), "low": range(0, depth // 2, 2)}
        if dola not in halves:
            raise UsageError(f"dola must be high, low or a list of layers; it is '{dola}'.")
        return tuple(halves[dola]) or (0,)
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
