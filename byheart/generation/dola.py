"""DoLa: the last layer's distribution against an earlier layer's (Chuang et al. 2023, arXiv 2309.03883)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.errors import UsageError
from byheart.generation.decoding import Score
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache

_KEPT_BY_DOLA = 0.1


def _candidates(chosen: str | Sequence[int], depth: int) -> list[int]:
    """Indices of layers whose outputs are compared: every second one of the upper or lower half, or the given ones."""
    if isinstance(chosen, str):
        halves = {"high": range(depth // 2, depth - 1, 2), "low": range(0, depth // 2, 2)}
        if chosen not in halves:
            raise UsageError(f"dola must be high, low or a list of layers; it is '{chosen}'.")
        return list(halves[chosen]) or [0]
    if not chosen or any(not 0 <= layer < depth - 1 for layer in chosen):
        raise UsageError(f"dola's layers must lie between 0 and {depth - 2}; they are {list(chosen)}.")
    return sorted(set(chosen))


def _dola(backbone: Backbone, candidates: Sequence[int], cache: PrefixCache) -> Score:
    """The last layer's log-probabilities less those of the candidate that differs from it most, by Jensen-Shannon."""

    def score(tokens: Tensor, mask: Tensor) -> Tensor:
        early: dict[int, Tensor] = {}
        with backbone.layer_outputs(lambda index, hidden: early.__setitem__(index, hidden[:, -1])):
            last = backbone.hidden(tokens, cache=cache, mask=mask)[:, -1]
        # As published, an early layer's states go to the head without the final norm.
        stacked = torch.stack([last, *(early[index] for index in candidates)])
        log_p = torch.log_softmax(backbone.logits(stacked), dim=-1)
        return dola_scores(log_p[0], log_p[1:])

    return score


def dola_scores(mature: Float[Tensor, "B V"], premature: Float[Tensor, "C B V"]) -> Float[Tensor, "B V"]:
    """DoLa's scores from log-probabilities of the last layer and of C candidates; implausible tokens get -inf."""
    middle = torch.logaddexp(mature[None], premature) - torch.log(torch.tensor(2.0))
    divergence = 0.5 * (
        (mature.exp()[None] * (mature[None] - middle)).sum(-1) + (premature.exp() * (premature - middle)).sum(-1)
    )
    best = divergence.argmax(0)
    chosen = premature.gather(0, best[None, :, None].expand(1, -1, premature.shape[-1]))[0]
    plausible = mature >= mature.amax(-1, keepdim=True) + torch.log(torch.tensor(_KEPT_BY_DOLA))
    return torch.where(plausible, mature - chosen, float("-inf"))
