"""One of every k slots of the text's own keys and values, which needs no training: a floor for learned compression.

The model reads a text with its ordinary attention, so a slot that is kept has seen all the text before it; the slots
between are dropped. The last slot of each k is the one kept, and the text's first slot stays too, as an attention sink
(StreamingLLM, Xiao et al. 2024, arXiv 2309.17453): without it the model answers worse than with no memory at all.

What one write keeps of ten tokens, every = 3, sinks = 1 (ceil(10 / 3) = 4 slots in all, sink included):

    1 . . 1 . . 1 . . 1

Each write keeps a slot for every k of its own tokens, at least one, and reads its text after the slots kept before.
A slot takes the position of its place in the memory, as if the slots were the text: on SmolLM2-135M that predicts
better than the slots' own distances to the reader.

State: `keys.l`, `values.l` (B, H, M, W) per layer, keys as of position 0; coded where ``bits`` is not 16.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Int
from torch import Tensor

from byheart.model.reading import KV
from byheart.protocol.every_method import EveryMethod
from byheart.protocol.kv_slots import concat, map_slots
from byheart.protocol.size import shares


class EveryKth(EveryMethod):
    """Keeps a slot for every ``every`` tokens.

    Args:
        sinks: how many of a first text's slots are its very first ones.
        chunk_tokens: how many tokens are read at once; longer text is written in such pieces.
        bits: of each number that is kept; 8 or 4 code it once, when it is written.
    """

    name = "every-kth"

    def keep(self, past: KV | None, new: KV) -> KV:
        """What was kept, and some of the new slots."""
        indices = self._indices(new.slots, first=past is None).to(new.keys[0].device)
        return concat(past, map_slots(lambda part: part[:, :, indices], new))

    def _indices(self, tokens: int, *, first: bool) -> Int[Tensor, " M"]:
        """Which slots of a text are kept: its sinks, and the last of each even share of the rest."""
        sinks = min(self.sinks, tokens) if first else 0
        rest, count = tokens - sinks, shares(tokens, every=self.every, sinks=sinks)
        ends = [sinks + math.ceil(rest * (share + 1) / count) - 1 for share in range(count)]
        return torch.tensor([*range(sinks), *ends])
