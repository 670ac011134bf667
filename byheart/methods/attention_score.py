"""The slots that a text's last tokens attend to most (SnapKV, Li et al. 2024, arXiv 2404.14469), without training.

What the last tokens look at is what the tokens after them will look at. So the attention of an observation
window, the last tokens of a text, is averaged over the window and over the query heads of each key-value head, and
smoothed along the text so that whole phrases stay. In every layer and key-value head the slots of the
highest scores are kept, and the window itself.

What one write looks at, six tokens of which two are observed (each column's mean is its slot's score):

    1 1 1 1 1 .
    1 1 1 1 1 1

State: `keys.l`, `values.l` (B, H, M, W) per layer, keys as of position 0; M <= slots; coded where ``bits`` is not 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.errors import UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.observed_attention import require_observed
from byheart.model.reading import KV
from byheart.protocol.kv_method import KVMethod, NewKV
from byheart.protocol.kv_slots import concat, gather, top_indices
from byheart.protocol.size import slots_size


class AttentionScore(KVMethod):
    """Keeps ``slots`` slots per layer and head: the last ``observed``, and those that these attend to most.

    Args:
        observed: how many last tokens of each chunk score all slots; their own slots are kept.
        pooled: over how many neighbouring slots scores are averaged; an odd number.
        chunk_tokens: how many tokens are read at once after what is kept; slots are dropped after each.
        bits: of each number that is kept; 8 or 4 code it once, when it is written.
        opening, receipt: tokens that the chat template puts before the first text and after each; they are not kept.
    """

    name = "attention-score"
    text_format = "turn"
    # Of few slots, a quarter are the observed ones.
    size = slots_size(itemgetter("slots"), lambda slots: {"slots": slots, "observed": min(32, max(1, slots // 4))})

    def __init__(
        self,
        backbone: Backbone,
        *,
        slots: int = 512,
        observed: int = 32,
        pooled: int = 5,
        chunk_tokens: int = 1024,
        bits: int = 16,
        opening: Sequence[int] = (),
        receipt: Sequence[int] = (),
    ) -> None:
        KVMethod.__init__(self, backbone, bits=bits, opening=opening, receipt=receipt)
        require_positive(slots=slots, observed=observed, pooled=pooled, chunk_tokens=chunk_tokens)
        if observed > slots:
            raise UsageError(f"observed must be at most slots, {slots}: its slots are kept; it is {observed}.")
        if pooled % 2 == 0:
            raise UsageError(f"pooled must be odd, a slot and as many on either side of it; it is {pooled}.")
        self.slots, self.observed, self.pooled, self.chunk_tokens = slots, observed, pooled, chunk_tokens
        self.capacity = slots + self.frame.most

    def keep(self, past: KV | None, new: NewKV) -> KV:
        """The slots of the highest scores, and the observed ones. Raises UnsupportedModelError."""
        kv = concat(past, new)
        require_observed(new.attention, len(kv.keys), name=self.name)
        if kv.slots <= self.slots:
            return kv
        scores = map(self._smooth, new.attention)
        return gather(kv, [top_indices(score, self.slots, recent=self.observed) for score in scores])

    def _smooth(self, scores: Float[Tensor, "B H M"]) -> Float[Tensor, "B H M"]:
        """Means over neighbours; past either end there are none to count."""
        side = self.pooled // 2
        return torch.nn.functional.avg_pool1d(scores, self.pooled, 1, side, count_include_pad=False)
