"""The mean of every k rows of the text's own keys and values, which needs no training: a floor for learned compression.

The model reads a text with its ordinary attention; then each k consecutive rows become their mean. Keys are averaged
un-rotated: rotated ones point apart and would cancel out. The text's first row stays as it is, as an attention sink
(StreamingLLM, Xiao et al. 2024, arXiv 2309.17453).

Which of ten tokens each row of one write is a mean of, every = 3, sinks = 1 (ceil(10 / 3) = 4 rows in all):

    1 . . . . . . . . .
    . 1 1 1 . . . . . .
    . . . . 1 1 1 . . .
    . . . . . . . 1 1 1

Each write keeps a row for every k of its own tokens, at least one, and reads its text behind the rows kept before.
Rows take the position of their place in the memory, as if they were the text: on SmolLM2-135M that predicts better
than the mean of their tokens' distances to the reader.

State: `keys.l`, `values.l` (B, H, M, W) a layer, keys as of position 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.errors import UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import KV, Reading
from byheart.protocol.kv_slots import concat, every_within, read_slots, rotate_to_slots, slots_of, write_segments
from byheart.protocol.method import Method
from byheart.protocol.segments import split_segments
from byheart.protocol.state import State


class MeanPooled(Method):
    """Keeps a row for every ``every`` tokens.

    Args:
        sinks: how many of a first text's rows are its very first ones, as they are.
        chunk_tokens: how many tokens are read at once; longer text is written in such pieces.
    """

    name = "mean-pooled"

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
        """Read ``segment`` behind what is held and keep means of its rows."""
        return write_segments(state, self.pieces(segment), self._after)

    def read(self, state: State) -> Reading:
        """The rows at positions 0 to M - 1."""
        return read_slots(self.backbone, state)

    def _after(self, piece: Tensor, held: KV | None) -> KV:
        new = self.backbone.prefill(piece, rotate_to_slots(self.backbone, held) if held else None)
        start = held.slots if held else 0
        back = -torch.arange(start, start + new.slots, device=new.keys[0].device)
        wide = KV(tuple(k.float() for k in new.keys), tuple(v.float() for v in new.values))
        pooled = self._pooled(self.backbone.turn(wide, back), first=held is None)
        return concat(held, pooled)

    def _pooled(self, rows: KV, *, first: bool) -> KV:
        """Means of float32 rows, in the model's type."""
        slots_of = self._shares(rows.slots, first=first).to(rows.keys[0].device)
        dtype = self.backbone.dtype
        return KV(
            tuple((slots_of @ keys).to(dtype) for keys in rows.keys),
            tuple((slots_of @ values).to(dtype) for values in rows.values),
        )

    def _shares(self, tokens: int, *, first: bool) -> Float[Tensor, "M T"]:
        """How much of each token is in each row: the table above, its lines divided by their sums."""
        sinks = min(self.sinks, tokens) if first else 0
        rest = tokens - sinks
        groups = slots_of(tokens, every=self.every, sinks=sinks)
        row = torch.cat([torch.arange(sinks), sinks + torch.arange(rest) * groups // max(1, rest)])
        table = torch.nn.functional.one_hot(row).T.float()
        return table / table.sum(1, keepdim=True)
