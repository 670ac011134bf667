"""What decides a training run, besides its method and its batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from byheart.protocol.objective import TARGETS_ONLY, Objective

TOO_LONG = ("refuse", "cut")
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Recipe:
    """What decides a run, besides its method and its batches.

    The learning rate rises over the first steps, then falls to 0 by a cosine, or is ``constant`` from the first on.
    """

    steps: Annotated[int, "Steps of the optimizer."] = 1000
    learning_rate: Annotated[float, "Its highest value."] = 3e-4
    warmup: Annotated[float, "Share of the steps in which the learning rate rises."] = 0.03
    schedule: Annotated[
        str, "Whether it falls by a cosine after them, or is the same throughout.", "cosine|constant"
    ] = "cosine"
    clip: Annotated[float, "The most that the norm of the gradients may be."] = 1.0
    weight_decay: Annotated[float, "Of AdamW."] = 0.0
    accumulate: Annotated[int, "Batches per step and process."] = 1
    objective: Objective = TARGETS_ONLY
    revisit: Annotated[float, "With --carried: chance that a batch asks for an earlier target again."] = 0.0
    too_long: Annotated[
        str, "Refuse an episode beyond the model's positions, or cut its oldest text.", "refuse|cut"
    ] = "refuse"
    seed: Annotated[int, "Of the batches and of dropout."] = 0

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, counted from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))
