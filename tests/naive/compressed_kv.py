"""The twin of ``byheart.methods.compressed_kv``: the published recursion, positions and all.

Memory keys stay rotated and positions are counted through all segments, so that nothing is rotated twice; LoRA is
computed at every token and multiplied by a mask.

Dimensions: S tokens of a segment, C compression tokens, M slots of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from byheart.model.anatomy import cache_argument

Rows = list[tuple[Tensor, Tensor]]


class Recursion:
    """``updates`` maps module paths to (down, up, scale); ``marks`` (C, D) are the compression tokens' embeddings.

    ``first`` has a layer's slot (1, H, 1, W) that stands before everything, at position 0.
    """

    def __init__(
        self,
        model: Any,
        marks: Tensor,
        updates: Mapping[str, tuple[Tensor, Tensor, float]],
        *,
        merge: str,
        recurrent: bool,
        sink: bool,
        first: Rows | None = None,
    ) -> None:
        self.model, self.marks, self.updates = model, marks, updates
        self.merge, self.recurrent, self.keeps_sink = merge, recurrent, sink
        self.first: Rows = first or []
        self.sink: Rows = []
        self.memory: Rows = []
        self.offset, self.segments = len(self.first[:1]), 0

    def write(self, segment: Tensor) -> None:
        """Compress ``segment`` (1, S)."""
        length, count = segment.shape[1], len(self.marks)
        text = self.model.get_input_embeddings()(segment)
        seen = self.concat(self.first, self.sink, self.memory if self.recurrent else [])
        mask = torch.tensor([0.0] * length + [1.0] * count)
        _, rows = self.run_model(torch.cat([text, self.marks[None]], dim=1), seen, mask)
        held = seen[0][0].shape[2] if seen else 0
        if self.keeps_sink and not self.sink:
            self.sink = [(k[:, :, held : held + 1], v[:, :, held : held + 1]) for k, v in rows]
        new = [(k[:, :, held + length :], v[:, :, held + length :]) for k, v in rows]
        if self.merge == "concat" or not self.memory:
            self.memory = self.concat(self.memory, new)
        else:
            a = 1 / (self.segments + 1)
            self.memory = [
                ((1 - a) * k + a * k_new, (1 - a) * v + a * v_new)
                for (k, v), (k_new, v_new) in zip(self.memory, new, strict=True)
            ]
        self.offset += length
        self.segments += 1

    def read(self, prompt: Tensor) -> Tensor:
        """Logits (T, V) of ``prompt`` (1, T) after the memory."""
        text = self.model.get_input_embeddings()(prompt)
        return self.run_model(text, self.concat(self.first, self.sink, self.memory), torch.zeros(prompt.shape[1]))[0]

    def concat(self, *parts: Rows) -> Rows:
        layers: Sequence[tuple[Any, ...]] = list(zip(*[part for part in parts if part], strict=True))
        return [(torch.cat([k for k, _ in each], dim=2), torch.cat([v for _, v in each], dim=2)) for each in layers]

    def run_model(
        self, embeds: Tensor, past: Rows, mask: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Rows]:
        cache = DynamicCache()
        for index, (k, v) in enumerate(past):
            cache.update(k.to(embeds.dtype), v.to(embeds.dtype), index)

        def hook(down: Tensor, up: Tensor, scale: float) -> Any:
            return lambda module, args, out: out + mask[None, :, None] * scale * (args[0] @ down.T @ up.T)

        decoder = self.model.get_decoder()
        handles = [
            decoder.get_submodule(path).register_forward_hook(hook(*update)) for path, update in self.updates.items()
        ]
        positions = torch.arange(self.offset, self.offset + embeds.shape[1])[None] if positions is None else positions
        try:
            out = self.model(
                inputs_embeds=embeds, position_ids=positions, use_cache=True, **{cache_argument(self.model): cache}
            )
        finally:
            for handle in handles:
                handle.remove()
        return out.logits[0], [(layer.keys, layer.values) for layer in cache.layers]
