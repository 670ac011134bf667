"""What decides a training run, beside its method and its batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

_TOO_LONG = ("refuse", "cut")


@dataclass(frozen=True)
class Recipe:
    """What decides a run, beside its memory and its batches.

    ``accumulate`` batches a process make a step. ``warmup`` is the share of the steps in which the learning rate
    rises; then it falls to 0 by a cosine. ``clip`` bounds the norm of the gradients. ``teacher``, ``every_segment`` and
    ``checkpoint_writes`` are those of ``Method.loss``. An episode longer than the model's positions is refused, or with
    ``too_long="cut"`` loses its oldest text.
    """

    steps: int
    learning_rate: float = 3e-4
    warmup: float = 0.03
    clip: float = 1.0
    weight_decay: float = 0.0
    accumulate: int = 1
    teacher: float = 0.0
    every_segment: float = 0.0
    checkpoint_writes: bool = False
    too_long: str = "refuse"
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, from 0 on."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))
