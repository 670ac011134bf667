"""The twin of ``byheart.methods.latent_pool``: a pool in order, its hidden states put before the text in every layer.

Nothing is kept but hidden states: every pass projects, normalises and turns all of them again, over an empty cache.

Dimensions: L layers, M slots of the pool, P slots put in front, K renewed slots, T tokens, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class OrderedPool:
    """``writer`` and ``reader`` are models; ``first`` (L, 1, D) stands before all slots, ``mark`` (D,) on some."""

    def __init__(self, writer: Any, reader: Any, first: Tensor, mark: Tensor, *, slots: int, blocks: int) -> None:
        self.writer, self.reader, self.first, self.mark = writer, reader, first, mark
        self.slots, self.most = slots, slots * blocks
        self.pool = first[:, :0]

    def write(self, tokens: Tensor, survivors: Tensor) -> None:
        """Read ``tokens`` (1, T) after the newest slots; only the old slots at ``survivors`` (L, n) stay."""
        newest = self.pool[:, -self.slots :]
        marked = min(self.slots, newest.shape[1] + tokens.shape[1])
        _, outputs = self._run(self.writer, torch.cat([self.first, newest], dim=1), tokens, marked)
        kept = self.pool.gather(1, survivors[..., None].expand(-1, -1, self.pool.shape[2]))
        self.pool = torch.cat([kept, outputs[:, -marked:]], dim=1)

    def dropped(self, tokens: Tensor) -> int:
        """How many slots writing ``tokens`` must drop."""
        new = min(self.slots, min(self.slots, self.pool.shape[1]) + tokens.shape[1])
        return max(0, self.pool.shape[1] + new - self.most)

    def read(self, tokens: Tensor) -> Tensor:
        """Logits (T, V) of ``tokens`` (1, T) after the whole pool."""
        return self._run(self.reader, torch.cat([self.first, self.pool], dim=1), tokens, 0)[0]

    def _run(self, model: Any, front: Tensor, tokens: Tensor, marked: int) -> tuple[Tensor, Tensor]:
        """Logits (T, V) and each layer's output (L, P + T, D), with ``front`` (L, P, D) in place of the first slots."""
        length = front.shape[1]
        text = model.get_input_embeddings()(tokens)
        embeds = torch.cat([text.new_zeros(1, length, text.shape[2]), text], dim=1)
        outputs: list[Tensor] = []

        def enter(index: int, hidden: Tensor) -> Tensor:
            placed = torch.cat([front[index][None], hidden[:, length:]], dim=1)
            if marked:
                placed[:, -marked:] += self.mark
            return placed

        layers = model.get_decoder().layers
        handles = [
            layer.register_forward_pre_hook(lambda module, args, n=n: (enter(n, args[0]), *args[1:]))
            for n, layer in enumerate(layers)
        ]
        handles += [layer.register_forward_hook(lambda module, args, out: outputs.append(out[0])) for layer in layers]
        try:
            logits = model(inputs_embeds=embeds, use_cache=False).logits[0, length:]
        finally:
            for handle in handles:
                handle.remove()
        return logits, torch.stack(outputs)
