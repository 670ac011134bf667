"""MemoryLLM's training: one full pool is carried from step to step, and every text goes into it (arXiv 2402.04624).

What predicts an episode's target (section 3.3 and algorithm 1):

    one segment, a share of them     first | the K new slots            gradients through the write
    one segment, the others          first | all N slots of the pool    none through the write
    several segments                 first | all N slots of the pool    none through the writes
    no segment                       first | all N slots of the pool    nothing is written: a target of earlier

A write reads the pool's newest slots alone, and drops as many old slots by chance as it adds; what is written after it
drops some of its own. So a pool holds old slots of many texts, and what reads it learns to find its own among them.
Gradients never go back through two writes. Whatever was written stays in the pool for the next step.

The draws are those of PyTorch's generator, which a training loop seeds for each step.

Dimensions: B batch, L layers, N slots of a full pool, K slots of a write, M <= N slots, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.errors import UsageError
from byheart.model.backbone import Backbone
from byheart.protocol.episode import Batch
from byheart.protocol.episode_loss import episode_loss
from byheart.protocol.objective import Objective
from byheart.protocol.state import State


@runtime_checkable
class PoolMethod(Protocol):
    """What a method of pools gives to be trained so."""

    backbone: Backbone
    initial: Tensor | None
    slots: int
    blocks: int
    forget: str

    def pieces(self, segment: Tensor) -> Iterator[Tensor]: ...

    def state_of(self, pool: Tensor | None) -> State: ...

    def dry_run(self, state: State, piece: Tensor) -> Tensor: ...

    def fill(self, pool: Tensor) -> None: ...


See = Callable[[Sequence[State], Tensor], Tensor]
"""The hidden states of tokens that each read a state."""


def carried_loss(method: PoolMethod, see: See, batch: Batch, objective: Objective) -> Float[Tensor, ""]:
    """The mean loss of the episodes' targets; ``method.initial`` is then the pool with all that they wrote.

    Raises UsageError where nothing was carried yet and nothing is written, and for an objective that weighs more.
    """
    if objective.teacher or objective.every_segment or objective.checkpoint_writes:
        raise UsageError("With carried only targets are learned: leave out teacher, every_segment, checkpoint_writes.")
    losses = []
    for row in range(batch.target.shape[0]):
        alone = Batch(**{name: part[row : row + 1] for name, part in vars(batch).items()})
        state = _carry(method, [alone.rows(n)[0] for n in range(alone.segments.shape[1])], objective.full_pool)
        losses.append(episode_loss(method.backbone, see([state], alone.target), alone))
    return torch.stack(losses).mean()


def _carry(method: PoolMethod, segments: Sequence[Int[Tensor, "1 T"]], full_pool: float) -> State:
    """What an episode's target reads; the pool is carried on with the segments in it."""
    has_gradients = len(segments) == 1 and torch.rand(()).item() >= full_pool
    with torch.set_grad_enabled(has_gradients and torch.is_grad_enabled()):
        written = _write(method, segments)
    with torch.no_grad():
        pool = method.initial
        for new in written:
            pool = add_slots(pool, new.detach(), method.slots * method.blocks, shared=method.forget == "shared")
        if pool is None:
            raise UsageError("Nothing was written into this pool yet: the first episode needs a segment.")
        method.fill(pool)
    return method.state_of(torch.cat(written, dim=1) if has_gradients else pool)


def _write(method: PoolMethod, segments: Sequence[Tensor]) -> list[Float[Tensor, "L K D"]]:
    """The slots that each piece of the segments adds, each read after the newest before it."""
    pool = method.initial
    newest = None if pool is None else pool[:, -method.slots :]
    written = []
    for segment in segments:
        for piece in method.pieces(segment):
            new = method.dry_run(method.state_of(newest), piece)[0]
            newest = (
                new.detach() if newest is None else torch.cat([newest.to(new), new.detach()], 1)[:, -method.slots :]
            )
            written.append(new)
    return written


def add_slots(
    pool: Float[Tensor, "L M D"] | None, new: Float[Tensor, "L K D"], most: int, *, shared: bool
) -> Float[Tensor, "L N D"]:
    """A pool of ``most`` slots, in order of age, to which new ones were added and as many old ones dropped by chance.

    As published, the first slots of all fill a pool by being repeated.

    Args:
        shared: drop the same slots in all layers.
    """
    if pool is None:
        repeats = -(-most // new.shape[1])
        return new.repeat(1, repeats, 1)[:, -most:]
    layers, slots, dim = pool.shape
    times = 1 if shared else layers
    kept = torch.stack([torch.randperm(slots)[: most - new.shape[1]].sort().values for _ in range(times)])
    places = kept.to(pool.device).expand(layers, -1)[..., None].expand(-1, -1, dim)
    return torch.cat([pool.gather(1, places).to(new), new], dim=1)
