"""The rows that a text's last tokens attend to most (SnapKV, Li et al. 2024, arXiv 2404.14469), without training.

What the last tokens look at is what the tokens after them will look at. So the attention of an observation
window, the last tokens of a text, is averaged over the window and over the query heads of each key-value head, and
smoothed along the text so that whole phrases stay. In every layer and key-value head the rows of the
highest scores are kept, and the window itself.

What one write looks at, six tokens of which two are observed (each column's mean is its row's score):

    1 1 1 1 1 .
    1 1 1 1 1 1

State: `keys.l`, `values.l` (B, H, M, W) a layer, keys as of position 0; M <= slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.errors import UnsupportedModelError, UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.observed_attention import observing
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


class AttentionScore(Method):
    """Keeps ``slots`` rows a layer and head: the last ``observed``, and those that these attend to most.

    Args:
        observed: how many last rows of a text's chunk score all rows, and are kept.
        pooled: over how many neighbouring rows scores are averaged; an odd number.
        chunk_tokens: how many tokens are read at once behind what is kept; rows are dropped after each.
    """

    name = "attention-score"
    text_format = "turn"

    def __init__(
        self, backbone: Backbone, *, slots: int = 512, observed: int = 32, pooled: int = 5, chunk_tokens: int = 1024
    ) -> None:
        Method.__init__(self, backbone)
        require_positive(slots=slots, observed=observed, pooled=pooled, chunk_tokens=chunk_tokens)
        if observed > slots:
            raise UsageError(f"observed must be at most slots, {slots}: its rows are kept; it is {observed}.")
        if pooled % 2 == 0:
            raise UsageError(f"pooled must be odd, a row and as many on either side of it; it is {pooled}.")
        self.slots, self.observed, self.pooled, self.chunk_tokens = slots, observed, pooled, chunk_tokens
        self.capacity = slots

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """As many rows as fit; of few, a quarter are the observed ones."""
        slots = slots_within(backbone, budget, name=cls.name)
        return {"slots": slots, "observed": min(32, max(1, slots // 4))}

    def init(self) -> State:
        """No rows."""
        return {}

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return split_segments(segment, longest=self.chunk_tokens)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` behind what is held and drop what its last tokens do not look at."""
        return write_segments(state, self.pieces(segment), self._after)

    def read(self, state: State) -> Reading:
        """The rows at positions 0 to M - 1."""
        return read_slots(self.backbone, state)

    def _after(self, piece: Tensor, held: KV | None) -> KV:
        with observing(self.observed) as seen:
            new = prefill_unrotated(self.backbone, piece, held)
        return self._kept(concat(held, new), seen.layers)

    def _kept(self, held: KV, received: list[Float[Tensor, "B H M"]]) -> KV:
        if len(received) != len(held.keys):
            raise UnsupportedModelError(
                f"{self.name} needs a model that runs on byheart's attention, and saw {len(received)} of "
                f"{len(held.keys)} layers; open it with Backbone.open, or set its attn_implementation to 'byheart'."
            )
        if held.slots <= self.slots:
            return held
        return gather(held, [top_indices(self._smoothed(each), self.slots, recent=self.observed) for each in received])

    def _smoothed(self, scores: Float[Tensor, "B H M"]) -> Float[Tensor, "B H M"]:
        """Means over neighbours; past either end there are none to count."""
        side = self.pooled // 2
        return torch.nn.functional.avg_pool1d(scores, self.pooled, 1, side, count_include_pad=False)
