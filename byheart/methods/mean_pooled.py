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

State: `keys.l`, `values.l` (B, H, M, W) per layer, keys as of position 0; coded where ``bits`` is not 16.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.model.reading import KV
from byheart.protocol.every_method import EveryMethod
from byheart.protocol.kv_slots import concat, map_slots
from byheart.protocol.size import shares


class MeanPooled(EveryMethod):
    """Keeps a mean for every ``every`` tokens.

    Args:
        sinks: how many of a first text's slots are its very first ones, as they are.
        chunk_tokens: how many tokens are read at once; longer text is written in such pieces.
        bits: of each number that is kept; 8 or 4 code it once, when it is written.
    """

    name = "mean-pooled"
    in_float32 = True

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
