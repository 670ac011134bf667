"""No memory: the floor of every comparison. State: `writes` (B,), how many segments it was given."""

from __future__ import annotations

import torch
from torch import Tensor

from byheart.model.reading import Reading
from byheart.protocol.method import Method
from byheart.protocol.size import fixed_size
from byheart.protocol.state import State


class Nothing(Method):
    """Keeps only how often it was written to."""

    name = "nothing"
    capacity = 0
    size = fixed_size(lambda backbone, tokens: 8)

    def init(self) -> State:
        """Nothing written."""
        return {"writes": torch.zeros(1, dtype=torch.long)}

    def write(self, state: State, segment: Tensor) -> State:
        """Count."""
        return {"writes": state["writes"] + 1}

    def read(self, state: State) -> Reading:
        """An empty reading."""
        return Reading(batch=state["writes"].shape[0])
