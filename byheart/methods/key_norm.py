"""The rows whose keys are shortest (Devoto et al. 2024, arXiv 2406.11430), which needs no training and no attention.

A key of small L2 norm tends to get much attention, whatever asks, so in every layer and key-value head the
rows with the shortest keys are kept and the others dropped. The first rows stay too, as attention sinks, and the last
ones, which are the context of what comes next. Turning a key does not change its norm.

State: `keys.l`, `values.l` (B, H, M, W) a layer, keys as of position 0; M <= slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from byheart.errors import UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import KV, Reading
from byheart.protocol.kv_slots import (
    concat,
    gather,
    prefill_unrotated,
    read_slots,
    slots_within,
    top_indices,
    write_segments,
)
from byheart.protocol.method import Method
from byheart.protocol.segments import split_segments
from byheart.protocol.state import State


class KeyNorm(Method):
    """Keeps ``slots`` rows a layer and head: the first, the last, and those of the shortest keys between them.

    Args:
        sinks: rows kept from the very beginning.
        recent: rows kept from the end.
        chunk_tokens: how many tokens are read at once behind what is kept; rows are dropped after each.
    """

    name = "key-norm"
    text_format = "turn"

    def __init__(
        self, backbone: Backbone, *, slots: int = 512, sinks: int = 4, recent: int = 32, chunk_tokens: int = 1024
    ) -> None:
        Method.__init__(self, backbone)
        require_positive(slots=slots, chunk_tokens=chunk_tokens)
        if min(sinks, recent) < 0 or sinks + recent > slots:
            raise UsageError(
                f"sinks and recent must be 0 or more and within slots, {slots}; they are {sinks}, {recent}."
            )
        self.slots, self.sinks, self.recent, self.chunk_tokens = slots, sinks, recent, chunk_tokens
        self.capacity = slots

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """As many rows as fit; of few, a quarter each are first and last ones."""
        slots = slots_within(backbone, budget, name=cls.name)
        return {"slots": slots, "sinks": min(4, slots // 4), "recent": min(32, slots // 4)}

    def init(self) -> State:
        """No rows."""
        return {}

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return split_segments(segment, longest=self.chunk_tokens)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` behind what is held and drop the rows of long keys."""
        return write_segments(state, self.pieces(segment), self._after)

    def read(self, state: State) -> Reading:
        """The rows at positions 0 to M - 1."""
        return read_slots(self.backbone, state)

    def _after(self, piece: Tensor, held: KV | None) -> KV:
        new = prefill_unrotated(self.backbone, piece, held)
        return self._kept(concat(held, new))

    def _kept(self, held: KV) -> KV:
        if held.slots <= self.slots:
            return held
        norms = [keys.float().norm(dim=-1) for keys in held.keys]
        return gather(held, [top_indices(-norm, self.slots, sinks=self.sinks, recent=self.recent) for norm in norms])
