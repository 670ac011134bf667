"""One of every k rows of the text's own keys and values, which needs no training: a floor for learned compression.

The model reads a text with its ordinary attention, so a row that is kept has seen all the text before it; the rows
between are dropped. The last row of each k is the one kept, and the text's first row stays too, as an attention sink
(StreamingLLM, Xiao et al. 2024, arXiv 2309.17453): without it the model answers worse than with no memory at all.

What one write keeps of ten tokens, every = 3, sinks = 1 (ceil(10 / 3) = 4 rows in all, sink included):

    1 . . 1 . . 1 . . 1

Each write keeps a row for every k of its own tokens, at least one, and reads its text behind the rows kept before.
Keys are kept un-rotated and take the position of their row, as if the rows were the text: on SmolLM2-135M that
predicts better than the rows' own distances to the reader.

State: `keys.l`, `values.l` (B, H, M, W) a layer, keys as of position 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from byheart.errors import UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import KV, Reading
from byheart.protocol.kv_slots import concat, every_within, prefill_unrotated, read_slots, slots_of, write_segments
from byheart.protocol.method import Method
from byheart.protocol.segments import split_segments
from byheart.protocol.state import State


class EveryKth(Method):
    """Keeps a row for every ``every`` tokens.

    Args:
        sinks: how many of a first text's rows are its very first ones.
        chunk_tokens: how many tokens are read at once; longer text is written in such pieces.
    """

    name = "every-kth"

    def __init__(self, backbone: Backbone, *, every: int = 16, sinks: int = 1, chunk_tokens: int = 1024) -> None:
        Method.__init__(self, backbone)
        require_positive(every=every, chunk_tokens=chunk_tokens)
        if sinks < 0:
            raise UsageError(f"sinks must be 0 or more; it is {sinks}.")
        self.every, self.sinks, self.chunk_tokens = every, sinks, chunk_tokens

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """The least ``every`` that fits."""
        return {"every": every_within(backbone, budget, tokens, name=cls.name, sinks=1, chunk_tokens=1024)}

    def init(self) -> State:
        """No rows."""
        return {}

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return split_segments(segment, longest=self.chunk_tokens)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` behind what is held and keep some of its rows."""
        return write_segments(state, self.pieces(segment), self._after)

    def read(self, state: State) -> Reading:
        """The rows at positions 0 to M - 1."""
        return read_slots(self.backbone, state)

    def _after(self, piece: Tensor, held: KV | None) -> KV:
        new = prefill_unrotated(self.backbone, piece, held)
        chosen = self._chosen(new.slots, first=held is None).to(new.keys[0].device)
        new = KV(tuple(k[:, :, chosen] for k in new.keys), tuple(v[:, :, chosen] for v in new.values))
        return concat(held, new)

    def _chosen(self, tokens: int, *, first: bool) -> Int[Tensor, " M"]:
        """Which rows of a text are kept: its sinks, and the last of each even share of the rest."""
        sinks = min(self.sinks, tokens) if first else 0
        rest = tokens - sinks
        rows = slots_of(tokens, every=self.every, sinks=sinks)
        ends = [sinks + math.ceil(rest * (row + 1) / rows) - 1 for row in range(rows)]
        return torch.tensor([*range(sinks), *ends])
