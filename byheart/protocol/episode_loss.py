"""The loss of episodes: how badly their targets are predicted from what was kept."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.model.backbone import Backbone
from byheart.model.losses import Reference, make_reference, token_losses
from byheart.protocol.episode import Batch
from byheart.protocol.objective import TARGETS_ONLY, Objective

__all__ = ["TARGETS_ONLY", "Objective", "episode_loss"]


def episode_loss(
    backbone: Backbone,
    hidden: Float[Tensor, "B c D"],
    batch: Batch,
    objective: Objective = TARGETS_ONLY,
) -> Float[Tensor, ""]:
    """Loss of a batch's supervised tokens from the states in the columns before them.

    Args:
        hidden: of the last c columns of the batch, segments then target; with ``every_segment`` of all.
        objective: weights KL(model with the whole text in front || model with what was kept), and the mean over the
            text's own tokens, beside the mean over the targets'.
    """
    weights = batch.weights(objective.every_segment)
    episode, column = weights[:, 1:].nonzero(as_tuple=True)
    states = hidden[episode, column - (weights.shape[1] - hidden.shape[1])]
    columns = torch.cat([batch.segments.flatten(1), batch.target], dim=1)
    reference = _with_full_text(backbone, batch, episode, column) if objective.teacher else None
    losses = token_losses(backbone, states, columns[episode, column + 1], reference=reference, kl=objective.teacher)
    return (losses.total * weights[episode, column + 1]).sum()


@torch.no_grad()
def _with_full_text(backbone: Backbone, batch: Batch, episode: Tensor, column: Tensor) -> Reference:
    """What the model predicts at columns of a batch where it has the whole text before them."""
    text, places = batch.joined()
    return make_reference(backbone, backbone.hidden(text)[episode, places[episode, column]])
