"""What the loss of an episode weighs, as one value; its fields are settings of a training run too.

It needs no PyTorch, so that the command line lists the settings without importing it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Objective:
    """Weights beside that of the supervised tokens, which is 1, and how gradients go back through the writes."""

    teacher: float = field(
        default=0.0,
        metadata={"help": "Weight of the divergence from the same model that has the whole text in front of it."},
    )
    every_segment: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the text itself from the second segment on, each token predicted from the tokens "
            "before it in its segment and the memory of earlier segments."
        },
    )
    checkpoint_writes: bool = field(
        default=False,
        metadata={
            "help": "Keep only the states between writes and run each write again for its gradients: a third more "
            "time, and room that grows with the states instead of with all layers of all segments."
        },
    )


TARGETS_ONLY = Objective()
"""Nothing but the supervised tokens counts."""
