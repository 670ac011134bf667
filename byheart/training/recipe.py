"""What decides a training run, besides its method and its batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from byheart.protocol.objective import Objective
from byheart.training.settings import setting

TOO_LONG = ("refuse", "cut")


@dataclass(frozen=True)
class Recipe:
    """What decides a run, besides its method and its batches.

    The learning rate rises over the first steps, then falls to 0 by a cosine.
    """

    steps: int = setting(1000, "Steps of the optimizer.")
    learning_rate: float = setting(3e-4, "Its highest value.")
    warmup: float = setting(0.03, "Share of the steps in which the learning rate rises.")
    clip: float = setting(1.0, "The most that the norm of the gradients may be.")
    weight_decay: float = setting(0.0, "Of AdamW.")
    accumulate: int = setting(1, "Batches per step and process.")
    objective: Objective = field(default_factory=Objective)
    too_long: str = setting(
        "refuse", "An episode beyond the model's positions: refuse it, or cut its oldest text.", "|".join(TOO_LONG)
    )
    seed: int = setting(0, "Of the batches and of dropout.")

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, counted from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))
