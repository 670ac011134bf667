"""The slots whose keys are shortest (Devoto et al. 2024, arXiv 2406.11430), which needs no training and no attention.

A key of small L2 norm tends to get much attention, whatever the query, so in every layer and key-value head the slots
with the shortest keys are kept and the others dropped. The first slots stay too, as attention sinks, and the last
ones, which are the context of what comes next. Rotating a key does not change its norm.

State: `keys.l`, `values.l` (B, H, M, W) per layer, keys as of position 0; M <= slots; coded where ``bits`` is not 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from byheart.errors import UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import KV
from byheart.protocol.kv_method import KVMethod
from byheart.protocol.kv_slots import concat, gather, top_indices
from byheart.protocol.size import slots_size


class KeyNorm(KVMethod):
    """Keeps ``slots`` slots per layer and head: the first, the last, and those of the shortest keys between them.

    Args:
        sinks: slots kept from the very beginning.
        recent: slots kept from the end.
        chunk_tokens: how many tokens are read at once after what is kept; slots are dropped after each.
        bits: of each number that is kept; 8 or 4 code it once, when it is written.
        opening, receipt: tokens that the chat template puts before the first text and after each; they are not kept.
    """

    name = "key-norm"
    text_format = "turn"
    # Of few slots, a quarter each are first and last ones.
    size = slots_size(
        itemgetter("slots"), lambda slots: {"slots": slots, "sinks": min(4, slots // 4), "recent": min(32, slots // 4)}
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        slots: int = 512,
        sinks: int = 4,
        recent: int = 32,
        chunk_tokens: int = 1024,
        bits: int = 16,
        opening: Sequence[int] = (),
        receipt: Sequence[int] = (),
    ) -> None:
        KVMethod.__init__(self, backbone, bits=bits, opening=opening, receipt=receipt)
        require_positive(slots=slots, chunk_tokens=chunk_tokens)
        if min(sinks, recent) < 0 or sinks + recent > slots:
            raise UsageError(
                f"sinks and recent must be 0 or more and within slots, {slots}; they are {sinks}, {recent}."
            )
        self.slots, self.sinks, self.recent, self.chunk_tokens = slots, sinks, recent, chunk_tokens
        self.capacity = slots + self.frame.most

    def keep(self, past: KV | None, new: KV) -> KV:
        """The slots of the shortest keys, and both ends."""
        kv = concat(past, new)
        if kv.slots <= self.slots:
            return kv
        norms = [keys.float().norm(dim=-1) for keys in kv.keys]
        return gather(kv, [top_indices(-norm, self.slots, sinks=self.sinks, recent=self.recent) for norm in norms])
