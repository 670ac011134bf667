"""What decides a training run, besides its method and its batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from byheart.protocol.objective import Objective

TOO_LONG = ("refuse", "cut")


@dataclass(frozen=True)
class Recipe:
    """What decides a run, besides its method and its batches.

    The learning rate rises over the first steps, then falls to 0 by a cosine.
    """

    steps: int = field(default=1000, metadata={"help": "Steps of the optimizer."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Its highest value."})
    warmup: float = field(default=0.03, metadata={"help": "Share of the steps in which the learning rate rises."})
    clip: float = field(default=1.0, metadata={"help": "The most that the norm of the gradients may be."})
    weight_decay: float = field(default=0.0, metadata={"help": "Of AdamW."})
    accumulate: int = field(default=1, metadata={"help": "Batches per step and process."})
    objective: Objective = field(default_factory=Objective)
    too_long: str = field(
        default="refuse",
        metadata={
            "help": "An episode beyond the model's positions: refuse it, or cut its oldest text.",
            "metavar": "|".join(TOO_LONG),
        },
    )
    seed: int = field(default=0, metadata={"help": "Of the batches and of dropout."})

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, counted from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))
