"""What the loss of an episode weighs, as one value; its fields are settings of a training run too.

It needs no PyTorch, so that the command line lists the settings without importing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Objective:
    """Weights beside that of the supervised tokens, which is 1, and how gradients go back through the writes.

    With ``every_segment``, each token is predicted from the tokens before it in its segment and the memory of earlier
    segments. With ``checkpoint_writes``, each write is run again for its gradients: a third more time, and room that
    grows with the states instead of with all layers of all segments. With ``carried``, a pool is trained as MemoryLLM
    was, see ``protocol.carried_pool``.
    """

    teacher: Annotated[float, "Weight of the divergence from the same model with the whole text in front of it."] = 0.0
    every_segment: Annotated[float, "Weight of the text itself, from the second segment on."] = 0.0
    checkpoint_writes: Annotated[bool, "Keep only the states between writes: less room, a third more time."] = False
    carried: Annotated[bool, "Of a pool: carry one full pool from step to step, and write every text into it."] = False
    full_pool: Annotated[float, "With --carried: share of one-segment episodes that read the whole pool."] = 0.5


TARGETS_ONLY = Objective()
"""Nothing but the supervised tokens counts."""
