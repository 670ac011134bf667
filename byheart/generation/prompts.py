"""Prompts side by side: checked against the model's positions, and padded on the left.

Dimensions: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from byheart.errors import InputError
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading


def require_room(backbone: Backbone, prompt: Tensor, reading: Reading, *, answer_tokens: int = 1) -> int:
    """How many tokens of an answer there are positions for.

    Raises InputError where a prompt is empty, or leaves fewer than ``answer_tokens``.
    """
    if len(prompt) == 0:
        raise InputError("There is nothing to ask: the prompt is empty.")
    room = backbone.positions - reading.slots - len(prompt)
    if room < answer_tokens:
        raise InputError(
            f"The memory's {reading.slots} slots and the prompt's {len(prompt)} tokens leave no room for an answer: "
            f"the model reads at most {backbone.positions}. Ask something shorter, or keep a smaller memory."
        )
    return room


def pad_left(prompts: Sequence[Tensor], device: torch.device) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Prompts (T,) of any lengths as one batch, and the mask that is False at padding."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = True
    return tokens, mask
