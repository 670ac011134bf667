"""The exact keys and values of the whole text: the ceiling of every comparison, at the highest price.

State: `keys.l`, `values.l` (B, H, M, W) per layer, keys rotated to their positions in the text; coded where
``bits`` is not 16. What a chat template puts around the text is not kept, see ``protocol.slot_frame``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from byheart.errors import require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.model.slices import Slices, prefill_in_slices, run_through
from byheart.protocol.kv_method import SlotMethod
from byheart.protocol.kv_slots import concat
from byheart.protocol.segments import SHORTER, require_positions
from byheart.protocol.size import Size, slot_bytes
from byheart.protocol.state import State


class Full(SlotMethod):
    """Keeps every key and value; a question then costs no more than if the text had been read just before it.

    Args:
        chunk_tokens: how many tokens are read at once; bounds the room a write takes, and changes nothing unless slots
            are coded.
        bits: of each number that is kept; 8 or 4 code it once, when it is written.
        opening, receipt: tokens that the chat template puts before the first text and after each; they are not kept.
    """

    name = "full"
    text_format = "turn"
    size = Size(lambda backbone, texts, options: sum(texts) * slot_bytes(backbone, options))

    def __init__(
        self,
        backbone: Backbone,
        *,
        chunk_tokens: int = 1024,
        bits: int = 16,
        opening: Sequence[int] = (),
        receipt: Sequence[int] = (),
    ) -> None:
        SlotMethod.__init__(self, backbone, bits=bits, opening=opening, receipt=receipt)
        require_positive(chunk_tokens=chunk_tokens)
        self.chunk_tokens = chunk_tokens

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return self.frame.pieces(segment, longest=self.chunk_tokens)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` after the text so far. Raises InputError past the model's positions."""
        return run_through(self.write_in_slices(state, segment, longest=self.backbone.positions))

    @torch.no_grad()
    def write_in_slices(self, state: State, segment: Tensor, *, longest: int) -> Slices[State]:
        """As ``write``, with pauses."""
        total = self.prefix_slots(state) + segment.shape[1]
        require_positions(self.backbone, total, SHORTER)
        for piece in self.pieces(segment):
            framed, past = self.frame.split(state, piece), self.coding.to_kv(state)
            prefix = concat(framed.front, past) if past else framed.front
            slices = torch.split(framed.tokens, longest, dim=1)
            kept = concat(past, (yield from prefill_in_slices(self.backbone, slices, prefix)))
            state = {**self.coding.to_state(kept), **framed.marks}
        return state

    @torch.no_grad()
    def read(self, state: State) -> Reading:
        """The text's own keys and values, and the chat template's around them."""
        kv = self.coding.to_plain(state)
        return Reading(self.frame.around(state, kv), batch=kv.batch) if kv else Reading()
