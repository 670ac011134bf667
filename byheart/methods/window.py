"""The first tokens and the most recent ones (StreamingLLM, Xiao et al. 2024, arXiv 2309.17453, section 3.2).

The first tokens are attention sinks: models put weight on them whatever they say. Keys are kept un-rotated and take
the position of their row in the window, so text of any length is read at positions the model knows.

State: `keys.l`, `values.l` (B, H, M, W) a layer, keys as of position 0; M <= sinks + recent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from byheart.errors import UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import KV, Reading
from byheart.protocol.kv_slots import concat, prefill_unrotated, read_slots, slots_within, write_segments
from byheart.protocol.method import Method
from byheart.protocol.segments import split_segments
from byheart.protocol.state import State


class Window(Method):
    """Keeps ``sinks`` first and ``recent`` last rows of keys and values.

    Args:
        sinks: rows kept from the very beginning.
        recent: rows kept from the end.
        chunk_tokens: how many tokens are read at once over the window.
    """

    name = "window"
    text_format = "turn"

    def __init__(self, backbone: Backbone, *, sinks: int = 4, recent: int = 508, chunk_tokens: int = 256) -> None:
        Method.__init__(self, backbone)
        require_positive(recent=recent, chunk_tokens=chunk_tokens)
        if sinks < 0:
            raise UsageError(f"sinks must be 0 or more; it is {sinks}.")
        self.sinks, self.recent, self.chunk_tokens = sinks, recent, chunk_tokens
        self.capacity = sinks + recent

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """As many rows as fit, four of them sinks where there are more."""
        rows = slots_within(backbone, budget, name=cls.name)
        sinks = min(4, rows - 1)
        return {"sinks": sinks, "recent": rows - sinks}

    def init(self) -> State:
        """No rows."""
        return {}

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return split_segments(segment, longest=self.chunk_tokens)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` over the window and keep the window's new rows."""
        return write_segments(state, self.pieces(segment), self._after)

    def read(self, state: State) -> Reading:
        """The window, its rows at positions 0 to M - 1."""
        return read_slots(self.backbone, state)

    def _after(self, piece: Tensor, held: KV | None) -> KV:
        new = prefill_unrotated(self.backbone, piece, held)
        return self._kept(concat(held, new))

    def _kept(self, held: KV) -> KV:
        if held.slots <= self.sinks + self.recent:
            return held
        return held.slice(0, self.sinks).append(held.slice(held.slots - self.recent))
