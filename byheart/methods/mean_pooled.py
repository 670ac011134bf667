"""Means of every k slots of the text's own keys and values, which need no training: a floor for learned compression.

The model reads a text with its ordinary attention; then each k consecutive slots become their mean. Keys are averaged
un-rotated: rotated ones point apart and would cancel out. The text's first slot stays as it is, as an attention sink
(StreamingLLM, Xiao et al. 2024, arXiv 2309.17453).

Which of ten tokens each slot of one write is a mean of, every = 3, sinks = 1 (ceil(10 / 3) = 4 slots in all):

    1 . . . . . . . . .
    . 1 1 1 . . . . . .
    . . . . 1 1 1 . . .
    . . . . . . . 1 1 1

Each write keeps a slot for every k of its own tokens, at least one, and reads its text after the slots kept before.
A slot takes the position of its place in the memory, as if the slots were the text: on SmolLM2-135M that predicts
better than the mean of their tokens' distances to the reader.

State: `keys.l`, `values.l` (B, H, M, W) per layer, keys as of position 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.errors import require_not_negative, require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import KV
from byheart.protocol.kv_method import KVMethod
from byheart.protocol.kv_slots import concat, map_slots
from byheart.protocol.method import Method
from byheart.protocol.size import every_size, shares
from byheart.protocol.state import State, kv_slots


class MeanPooled(KVMethod):
    """Keeps a mean for every ``every`` tokens.

    Args:
        sinks: how many of a first text's slots are its very first ones, as they are.
        chunk_tokens: how many tokens are read at once; longer text is written in such pieces.
    """

    name = "mean-pooled"
    in_float32 = True
    size = every_size(sinks=1, chunk_tokens=1024)

    def __init__(self, backbone: Backbone, *, every: int = 16, sinks: int = 1, chunk_tokens: int = 1024) -> None:
        Method.__init__(self, backbone)
        require_positive(every=every, chunk_tokens=chunk_tokens)
        require_not_negative(sinks=sinks)
        self.every, self.sinks, self.chunk_tokens = every, sinks, chunk_tokens

    def slots_after(self, state: State, segment: Tensor) -> int:
        """More by what each chunk leaves."""
        held, lengths = kv_slots(state), [piece.shape[1] for piece in self.pieces(segment)]
        sinks = 0 if held else min(self.sinks, lengths[0])
        return held + sinks + sum(shares(n, every=self.every, sinks=0 if at else sinks) for at, n in enumerate(lengths))

    def keep(self, past: KV | None, new: KV) -> KV:
        """What was kept, and means of the new slots, in the model's type."""
        weights = self._weights(new.slots, first=past is None).to(new.keys[0].device)
        return concat(past, map_slots(lambda part: (weights @ part).to(self.backbone.dtype), new))

    def _weights(self, tokens: int, *, first: bool) -> Float[Tensor, "M T"]:
        """How much of each token is in each slot: the table above, its lines divided by their sums."""
        sinks = min(self.sinks, tokens) if first else 0
        rest, count = tokens - sinks, shares(tokens, every=self.every, sinks=sinks)
        slot = torch.cat([torch.arange(sinks), sinks + torch.arange(rest) * count // max(1, rest)])
        table = torch.nn.functional.one_hot(slot).T.float()
        return table / table.sum(1, keepdim=True)
