"""Every second slot of the text's own keys and values: half the bytes of ``full``.

State: `keys.l`, `values.l` (B, H, M, W) per layer, keys as of position 0.
"""

from __future__ import annotations

from byheart import KV, Backbone
from byheart.protocol import KVMethod, Method, concat, fixed_size, map_slots


class Half(KVMethod):
    """Keeps the first, the third, the fifth slot of what is read, and so on.

    Args:
        chunk_tokens: how many tokens the model reads at once; an even number.
    """

    name = "half"
    size = fixed_size(lambda backbone, tokens: (tokens + 1) // 2 * backbone.slot_bytes)

    def __init__(self, backbone: Backbone, *, chunk_tokens: int = 1024) -> None:
        Method.__init__(self, backbone)
        self.chunk_tokens = chunk_tokens

    def keep(self, past: KV | None, new: KV) -> KV:
        """What was kept before, and every second new slot."""
        return concat(past, map_slots(lambda part: part[:, :, ::2], new))
