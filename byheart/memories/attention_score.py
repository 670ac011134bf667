"""The rows that a text's last tokens attend to most (SnapKV, Li et al. 2024, arXiv 2404.14469), without training.

What the last tokens look at is what the tokens after them will look at. So the attention of an observation
window, the last tokens of a text, is averaged over the window and over the query heads of each key-value head, and
smoothed along the text so that whole phrases stay. In every layer and key-value head the rows of the
highest scores are kept, and the window itself.

What one write looks at, six tokens of which two are observed (each column's mean is its row's score):

    1 1 1 1 1 .
    1 1 1 1 1 1

State: `keys.l`, `values.l` (B, H, M, W) a layer, keys as of position 0; M <= rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.backbone import Backbone
from byheart.errors import UnsupportedModelError, UsageError
from byheart.kept import best, chosen, joined, placed_reading, read_behind, rows_within, written
from byheart.memory import Memory, cut, positive
from byheart.observed import observing
from byheart.reading import KV, Reading
from byheart.state import State


class AttentionScore(Memory):
    """Keeps ``rows`` rows a layer and head: the last ``observed``, and those that these attend to most.

    Args:
        observed: how many last rows of a text's chunk score all rows, and are kept.
        pooled: over how many neighbouring rows scores are averaged; an odd number.
        chunk_tokens: how many tokens are read at once behind what is kept; rows are dropped after each.
    """

    name = "attention-score"
    keeps_turns = True

    def __init__(
        self, backbone: Backbone, *, rows: int = 512, observed: int = 32, pooled: int = 5, chunk_tokens: int = 1024
    ) -> None:
        Memory.__init__(self, backbone)
        positive(rows=rows, observed=observed, pooled=pooled, chunk_tokens=chunk_tokens)
        if observed > rows:
            raise UsageError(f"observed must be at most rows, {rows}: its rows are kept; it is {observed}.")
        if pooled % 2 == 0:
            raise UsageError(f"pooled must be odd, a row and as many on either side of it; it is {pooled}.")
        self.rows, self.observed, self.pooled, self.chunk_tokens = rows, observed, pooled, chunk_tokens
        self.capacity = rows

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """As many rows as fit; of few, a quarter are the observed ones."""
        rows = rows_within(backbone, budget, name=cls.name)
        return {"rows": rows, "observed": min(32, max(1, rows // 4))}

    def init(self) -> State:
        """No rows."""
        return {}

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return cut(segment, longest=self.chunk_tokens)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` behind what is held and drop what its last tokens do not look at."""
        return written(state, self.pieces(segment), self._after)

    def read(self, state: State) -> Reading:
        """The rows at positions 0 to M - 1."""
        return placed_reading(self.backbone, state)

    def _after(self, piece: Tensor, held: KV | None) -> KV:
        with observing(self.observed) as seen:
            new = read_behind(self.backbone, piece, held)
        return self._kept(joined(held, new), seen.layers)

    def _kept(self, held: KV, received: list[Float[Tensor, "B H M"]]) -> KV:
        if len(received) != len(held.keys):
            raise UnsupportedModelError(
                f"{self.name} needs a model that runs on byheart's attention, and saw {len(received)} of "
                f"{len(held.keys)} layers; open it with Backbone.open, or set its attn_implementation to 'byheart'."
            )
        if held.length <= self.rows:
            return held
        return chosen(held, [best(self._smoothed(each), self.rows, recent=self.observed) for each in received])

    def _smoothed(self, scores: Float[Tensor, "B H M"]) -> Float[Tensor, "B H M"]:
        """Means over neighbours; past either end there are none to count."""
        side = self.pooled // 2
        return torch.nn.functional.avg_pool1d(scores, self.pooled, 1, side, count_include_pad=False)
