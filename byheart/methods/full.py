"""The exact keys and values of the whole text: the ceiling of every comparison, at the highest price.

State: `keys.l`, `values.l` (B, H, M, W) per layer, keys rotated to their positions in the text; coded where
``bits`` is not 16.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from byheart.errors import require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol.kv_method import SlotMethod
from byheart.protocol.kv_slots import concat
from byheart.protocol.segments import require_positions, split_segments
from byheart.protocol.size import Size, slot_bytes
from byheart.protocol.state import State, kv_slots


class Full(SlotMethod):
    """Keeps every key and value; a question then costs no more than if the text had been read just before it.

    Args:
        chunk_tokens: how many tokens are read at once; bounds the room a write takes, and changes nothing unless slots
            are coded.
        bits: of each number that is kept; 8 or 4 code it once, when it is written.
    """

    name = "full"
    text_format = "turn"
    size = Size(lambda backbone, texts, options: sum(texts) * slot_bytes(backbone, options))

    def __init__(self, backbone: Backbone, *, chunk_tokens: int = 1024, bits: int = 16) -> None:
        SlotMethod.__init__(self, backbone, bits=bits)
        require_positive(chunk_tokens=chunk_tokens)
        self.chunk_tokens = chunk_tokens

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return split_segments(segment, longest=self.chunk_tokens)

    def slots_after(self, state: State, segment: Tensor) -> int:
        """One more per token."""
        return kv_slots(state) + segment.shape[1]

    @torch.no_grad()
    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` after the text so far. Raises InputError past the model's positions."""
        total = kv_slots(state) + segment.shape[1]
        advice = "write less of it, or use a method of fixed size (window, latent-pool, compressed-kv)"
        require_positions(self.backbone, total, advice)
        for piece in self.pieces(segment):
            past = self.coding.to_kv(state)
            state = self.coding.to_state(concat(past, self.backbone.prefill(piece, past)))
        return state

    def read(self, state: State) -> Reading:
        """The text's own keys and values."""
        kv = self.coding.to_plain(state)
        return Reading(kv, batch=kv.batch if kv else 1)
