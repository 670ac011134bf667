"""How well tokens are predicted after a memory: at once, or while they stream into it.

Nothing here knows a task. Dimensions: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.model.backbone import Backbone
from byheart.model.losses import token_losses
from byheart.model.reading import Reading
from byheart.protocol.episode import Batch, Episode, collate
from byheart.protocol.method import Method
from byheart.protocol.state import State


@torch.no_grad()
def target_losses(backbone: Backbone, readings: Sequence[Reading], batch: Batch) -> Float[Tensor, " B"]:
    """The summed loss, in nats, of each episode's supervised tokens after its reading; segments are not looked at."""
    batch = batch.to(backbone.device)
    with backbone.reading(readings, room=batch.target.shape[1]) as cache:
        hidden = backbone.hidden(batch.target, cache=cache)
    row, column = batch.labels[:, 1:].nonzero(as_tuple=True)
    losses = token_losses(backbone, hidden[row, column], batch.target[row, column + 1]).cross_entropy
    return losses.new_zeros(len(readings)).index_add(0, row, losses).cpu()


@torch.no_grad()
def stream_losses(
    method: Method, states: Sequence[State], targets: Sequence[Int[Tensor, " _"]]
) -> list[tuple[float, int]]:
    """Of each target the summed loss, in nats, of all tokens but the first, and how many these are.

    Every token is predicted from all before it: the method reads as many as it can after its state
    (``Method.reads_at_once``), writes them, and reads on. So no token sees more slots than the method keeps, and the
    losses are those of reading one token after another.
    """
    backbone, now = method.backbone, list(states)
    losses, left = [0.0] * len(now), {n: target.to(backbone.device) for n, target in enumerate(targets)}
    while True:
        counts = {n: min(len(rest) - 1, method.reads_at_once(now[n], rest[None])) for n, rest in left.items()}
        batch = collate([Episode((), left[n][: count + 1]) for n, count in counts.items()])
        found = target_losses(backbone, [method.read(now[n]) for n in counts], batch)
        for n, loss in zip(counts, found.tolist(), strict=True):
            losses[n] += loss
        # What was read last is written by whoever asked, with the rest of its text.
        going = [n for n, count in counts.items() if len(left[n]) > count + 1]
        if not going:
            break
        written = method.write_many([now[n] for n in going], [left[n][None, : counts[n]] for n in going])
        for n, state in zip(going, written, strict=True):
            now[n] = state
        left = {n: left[n][counts[n] :] for n in going}
    return [(loss, len(target) - 1) for loss, target in zip(losses, targets, strict=True)]
