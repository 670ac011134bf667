"""The exact keys and values of the whole text: the ceiling of every comparison, at the highest price.

State: `keys.l`, `values.l` (B, H, M, W) a layer, keys rotated as they were made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from byheart.backbone import Backbone
from byheart.errors import InputError
from byheart.kept import joined, rows_within, written
from byheart.memory import Memory, cut, kv_of, positive
from byheart.reading import KV, Reading
from byheart.state import State


class Full(Memory):
    """Keeps every key and value; a question then costs no more than if the text had been read just before it.

    Args:
        chunk_tokens: how many tokens are read at once; bounds memory, changes nothing.
    """

    name = "full"
    keeps_turns = True

    def __init__(self, backbone: Backbone, *, chunk_tokens: int = 1024) -> None:
        Memory.__init__(self, backbone)
        positive(chunk_tokens=chunk_tokens)
        self.chunk_tokens = chunk_tokens

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """Nothing to choose: every token takes a row."""
        rows_within(backbone, budget, name=cls.name, least=tokens)
        return {}

    def init(self) -> State:
        """No rows."""
        return {}

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return cut(segment, longest=self.chunk_tokens)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` behind what is held. Raises InputError past the model's positions."""
        held = kv_of(state)
        total = (held.length if held else 0) + segment.shape[1]
        if total > self.backbone.positions:
            raise InputError(
                f"The text would be {total} tokens, but the model reads at most {self.backbone.positions}; "
                "write less of it, or use a memory of fixed size (window, latent-pool, compressed-kv)."
            )
        return written(state, self.pieces(segment), self._after)

    def read(self, state: State) -> Reading:
        """The text's own keys and values."""
        held = kv_of(state)
        return Reading(held, batch=held.batch if held else 1)

    def _after(self, piece: Tensor, held: KV | None) -> KV:
        return joined(held, self.backbone.prefill(piece, held))
