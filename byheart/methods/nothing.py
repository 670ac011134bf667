"""No memory: the floor of every comparison. State: `writes` (B,), how many segments it was given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from byheart.errors import BudgetError
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol.method import Method
from byheart.protocol.state import State


class Nothing(Method):
    """Keeps only how often it was written to."""

    name = "nothing"
    capacity = 0

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """Nothing to choose: one number is kept."""
        if budget < 8:
            raise BudgetError(cls.name, budget, 8)
        return {}

    def init(self) -> State:
        """Nothing written."""
        return {"writes": torch.zeros(1, dtype=torch.long)}

    def write(self, state: State, segment: Tensor) -> State:
        """Count."""
        return {"writes": state["writes"] + 1}

    def read(self, state: State) -> Reading:
        """An empty reading."""
        return Reading(batch=state["writes"].shape[0])
