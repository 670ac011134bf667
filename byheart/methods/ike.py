"""A fact in the model's context, after demonstrations of what such a fact bears on: IKE (Zheng et al. 2023).

"Can We Edit Factual Knowledge by In-Context Learning?" (arXiv 2305.12740) changes no weight: the new fact stands before
the prompt, and before it stand other facts, each with a prompt that it answers (a copy or a rephrasing) or that it
leaves alone. Whoever writes a fact gives the demonstrations with it (``evaluate edit -o demonstrations=FILE``); without
any this is the paper's baseline of a bare fact in front. What is kept is as in ``full``.

State: `keys.l`, `values.l` (B, H, M, W) per layer, keys rotated to their positions in the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from byheart.errors import require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol.fact import Fact
from byheart.protocol.kv_method import SlotMethod
from byheart.protocol.kv_slots import concat
from byheart.protocol.segments import require_positions, split_segments
from byheart.protocol.state import State


class IKE(SlotMethod):
    """Keeps the keys and values of demonstrations and of a fact after them; other text is kept as it is.

    Args:
        chunk_tokens: how many tokens are read at once; bounds the room a write takes, and changes nothing.
    """

    name = "ike"
    text_format = "turn"

    def __init__(self, backbone: Backbone, *, chunk_tokens: int = 1024) -> None:
        SlotMethod.__init__(self, backbone)
        require_positive(chunk_tokens=chunk_tokens)
        self.chunk_tokens = chunk_tokens

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return split_segments(segment, longest=self.chunk_tokens)

    def write_facts(self, states: Sequence[State], facts: Sequence[Fact]) -> list[State]:
        """Each fact among its demonstrations, one session after another."""
        return [self.write(state, fact.shown[None]) for state, fact in zip(states, facts, strict=True)]

    @torch.no_grad()
    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` after the text so far. Raises InputError past the model's positions."""
        total = self.prefix_slots(state) + segment.shape[1]
        require_positions(self.backbone, total, "write fewer facts, or give fewer demonstrations")
        for piece in self.pieces(segment):
            past = self.coding.to_kv(state)
            state = self.coding.to_state(concat(past, self.backbone.prefill(piece.to(self.backbone.device), past)))
        return state

    @torch.no_grad()
    def read(self, state: State) -> Reading:
        """The text's own keys and values."""
        kv = self.coding.to_plain(state)
        return Reading(kv, batch=kv.batch) if kv else Reading()
