"""Several processes that train one method together, on the state that accelerate keeps of them.

``accelerate launch`` or ``torchrun`` starts them. Each has the whole frozen model, which is not wrapped; they exchange
the gradients of the learned parts, a few megabytes per step. Most often there is one process, and nothing to exchange.
This module does not know how a run goes.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from byheart.errors import UsageError
from byheart.protocol.method import Method


class Processes:
    """How many there are, which one this is, and the device that is its own.

    Args:
        device: where all compute: ``cpu``, ``cuda``, or ``auto``.
    """

    def __init__(self, device: str = "auto") -> None:
        self.count, self.index, self.device = 1, 0, device
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 or torch.distributed.is_initialized():
            cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.cuda.is_available()
            state = _accelerate().PartialState(cpu=device == "cpu" or (device == "auto" and cpu))
            self.count, self.index = state.num_processes, state.process_index
            self.device = str(state.device) if device in ("auto", "cuda") else device

    @property
    def first(self) -> bool:
        """Whether this one writes files and shows progress."""
        return self.index == 0

    def total(self, *numbers: float) -> list[float]:
        """Sums over processes."""
        if self.count == 1:
            return list(numbers)
        device = _accelerate().PartialState().device
        summed: list[float] = (
            _accelerate().utils.reduce(torch.tensor(numbers, dtype=torch.float32, device=device), "sum").tolist()
        )
        return summed

    def agree(self, method: Method) -> None:
        """Give all processes the learned parts of the first."""
        if self.count > 1:
            for tensor in method.state_dict().values():
                tensor.copy_(_accelerate().utils.broadcast(tensor.contiguous()))

    def average(self, parameters: Sequence[Tensor]) -> None:
        """Replace each process's gradients by the mean over processes; a part that none used still has none."""
        if self.count == 1:
            return
        used = torch.tensor([float(part.grad is not None) for part in parameters], device=parameters[0].device)
        gradients = [(part.grad if part.grad is not None else torch.zeros_like(part)).float() for part in parameters]
        summed = _accelerate().utils.reduce(torch.cat([used, *(grad.flatten() for grad in gradients)]), "sum")
        counts, *grads = summed.split([len(parameters), *(part.numel() for part in parameters)])
        for part, count, grad in zip(parameters, counts.tolist(), grads, strict=True):
            part.grad = (grad / self.count).view_as(part).to(part.dtype) if count else None

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            _accelerate().PartialState().wait_for_everyone()


def _accelerate() -> Any:
    """The package, which a single process does not need. Raises UsageError where it is missing."""
    if importlib.util.find_spec("accelerate") is None:
        raise UsageError("Training in several processes needs accelerate: pip install 'byheart[train]'")
    return importlib.import_module("accelerate")
