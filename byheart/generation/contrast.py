"""One distribution against another: FastMem's contrastive decoding and context-aware decoding.

- contrast (FastMem, Zhu et al. 2024, arXiv 2406.16069, section 3.3): (1 + a) * with deltas - a * without them.
- context-aware (CAD, Shi et al. 2023, arXiv 2305.14739): (1 + a) * with the memory - a * without any.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from byheart.errors import UsageError
from byheart.generation.decoding import Decoding
from byheart.model.reading import Reading


def contrast(conditional: Tensor, unconditional: Tensor, strength: float) -> Tensor:
    """Scores that favour what the first distribution has over the second."""
    return (1 + strength) * conditional - strength * unconditional


def require_contrast(decoding: Decoding, readings: Sequence[Reading]) -> None:
    """Refuse ``contrast`` where no row changes a weight: it would be plain decoding. Raises UsageError."""
    if decoding.contrast is not None and not any(reading.deltas for reading in readings):
        raise UsageError(
            "contrast sets a memory's change of the weights against the model as it is, but this memory changes none; "
            "take last-ffn, ffn-lora or ffn-edit, or context_aware, which sets any memory against none."
        )
