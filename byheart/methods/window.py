"""The first tokens and the most recent ones (StreamingLLM, Xiao et al. 2024, arXiv 2309.17453, section 3.2).

The first tokens are attention sinks: models put weight on them whatever they say. Everything between them and the most
recent tokens is dropped.

State: `keys.l`, `values.l` (B, H, M, W) per layer, keys as of position 0; M <= sinks + recent; coded where
``bits`` is not 16.
"""

from __future__ import annotations

from collections.abc import Sequence

from byheart.errors import require_not_negative, require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import KV
from byheart.protocol.kv_method import KVMethod
from byheart.protocol.kv_slots import concat
from byheart.protocol.size import slots_size


class Window(KVMethod):
    """Keeps the ``sinks`` first and the ``recent`` last slots.

    Args:
        sinks: slots kept from the very beginning.
        recent: slots kept from the end.
        chunk_tokens: how many tokens are read at once after the window.
        bits: of each number that is kept; 8 or 4 code it once, when it is written.
        opening, receipt: tokens that the chat template puts before the first text and after each; they are not kept.
    """

    name = "window"
    text_format = "turn"
    # Four slots are sinks where there are more.
    size = slots_size(
        lambda options: options["sinks"] + options["recent"],
        lambda slots: {"sinks": min(4, slots - 1), "recent": slots - min(4, slots - 1)},
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        sinks: int = 4,
        recent: int = 508,
        chunk_tokens: int = 256,
        bits: int = 16,
        opening: Sequence[int] = (),
        receipt: Sequence[int] = (),
    ) -> None:
        KVMethod.__init__(self, backbone, bits=bits, opening=opening, receipt=receipt)
        require_positive(recent=recent, chunk_tokens=chunk_tokens)
        require_not_negative(sinks=sinks)
        self.sinks, self.recent, self.chunk_tokens = sinks, recent, chunk_tokens
        self.capacity = sinks + recent + self.frame.most

    def keep(self, past: KV | None, new: KV) -> KV:
        """The first and the last slots."""
        kv = concat(past, new)
        if kv.slots <= self.sinks + self.recent:
            return kv
        return kv.slice(0, self.sinks).append(kv.slice(kv.slots - self.recent))
