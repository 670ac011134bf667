"""The exact keys and values of the whole text: the ceiling of every comparison, at the highest price.

State: `keys.l`, `values.l` (B, H, M, W) a layer, keys rotated as they were made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from byheart.errors import InputError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import KV, Reading
from byheart.protocol.kv_slots import concat, slots_within, state_to_kv, write_segments
from byheart.protocol.method import Method
from byheart.protocol.segments import split_segments
from byheart.protocol.state import State


class Full(Method):
    """Keeps every key and value; a question then costs no more than if the text had been read just before it.

    Args:
        chunk_tokens: how many tokens are read at once; bounds memory, changes nothing.
    """

    name = "full"
    text_format = "turn"

    def __init__(self, backbone: Backbone, *, chunk_tokens: int = 1024) -> None:
        Method.__init__(self, backbone)
        require_positive(chunk_tokens=chunk_tokens)
        self.chunk_tokens = chunk_tokens

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """Nothing to choose: every token takes a row."""
        slots_within(backbone, budget, name=cls.name, least=tokens)
        return {}

    def init(self) -> State:
        """No rows."""
        return {}

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return split_segments(segment, longest=self.chunk_tokens)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` behind what is held. Raises InputError past the model's positions."""
        held = state_to_kv(state)
        total = (held.slots if held else 0) + segment.shape[1]
        if total > self.backbone.positions:
            raise InputError(
                f"The text would be {total} tokens, but the model reads at most {self.backbone.positions}; "
                "write less of it, or use a memory of fixed size (window, latent-pool, compressed-kv)."
            )
        return write_segments(state, self.pieces(segment), self._after)

    def read(self, state: State) -> Reading:
        """The text's own keys and values."""
        held = state_to_kv(state)
        return Reading(held, batch=held.batch if held else 1)

    def _after(self, piece: Tensor, held: KV | None) -> KV:
        return concat(held, self.backbone.prefill(piece, held))
