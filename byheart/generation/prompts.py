"""Prompts side by side: checked against the model's positions, and padded on the left.

Dimensions: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from byheart.errors import InputError
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading


def require_room(backbone: Backbone, prompt: Tensor, reading: Reading, *, answer_tokens: int = 1) -> None:
    """Raise InputError where a prompt is empty, or leaves no position for so many tokens of an answer."""
    if len(prompt) == 0:
        raise InputError("There is nothing to ask: the prompt is empty.")
    if reading.slots + len(prompt) + answer_tokens > backbone.positions:
        raise InputError(
            f"The memory's {reading.slots} slots and the prompt's {len(prompt)} tokens leave no room for an answer: "
            f"the model reads at most {backbone.positions}. Ask something shorter, or keep a smaller memory."
        )


def pad_left(prompts: Sequence[Tensor], device: torch.device) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Prompts (T,) of any lengths as one batch, and the mask that is False at padding."""
    rows = [prompt.to(device, torch.long) for prompt in prompts]
    real = [torch.ones_like(row, dtype=torch.bool) for row in rows]
    tokens, mask = (pad_sequence(part, batch_first=True, padding_side="left") for part in (rows, real))
    return tokens, mask
