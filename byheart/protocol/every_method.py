"""What methods share that leave a slot for every so many tokens of a text."""

from __future__ import annotations

from torch import Tensor

from byheart.errors import require_not_negative, require_positive
from byheart.model.backbone import Backbone
from byheart.protocol.kv_method import KVMethod
from byheart.protocol.size import every_size, every_slots
from byheart.protocol.state import State, kv_slots


class EveryMethod(KVMethod):
    """A method whose memory grows by a slot for every ``every`` tokens; a subclass says what is in it, by ``keep``."""

    size = every_size(most=1024)

    def __init__(
        self, backbone: Backbone, *, every: float = 16, sinks: int = 1, chunk_tokens: int = 1024, bits: int = 16
    ) -> None:
        KVMethod.__init__(self, backbone, bits=bits)
        require_positive(every=every, chunk_tokens=chunk_tokens)
        require_not_negative(sinks=sinks)
        self.every, self.sinks, self.chunk_tokens = every, sinks, chunk_tokens

    def slots_after(self, state: State, segment: Tensor) -> int:
        """More by what each chunk leaves; only a first text has sinks."""
        held, chunks = kv_slots(state), [piece.shape[1] for piece in self.pieces(segment)]
        return held + every_slots(chunks, every=self.every, sinks=0 if held else self.sinks)
