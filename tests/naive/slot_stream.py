"""The twin of ``compressed-kv`` with ``slots``: a token per pass, and one of compression tokens where slots are full.

Keys are kept as of position 0 and rotated to their places before each pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from byheart.model.backbone import Backbone
from byheart.model.reading import KV
from tests.naive.compressed_kv import Recursion, Rows


class Streaming:
    """``recursion`` runs the model; ``segment`` tokens are compressed at once, ``compressed`` slots kept at most."""

    def __init__(self, own: Backbone, recursion: Recursion, *, slots: int, segment: int, compressed: int) -> None:
        self.own, self.run, self.slots, self.segment, self.compressed = own, recursion, slots, segment, compressed
        self.parts: dict[str, Rows] = {"sink": [], "memory": [], "text": []}

    def next_logits(self, token: Tensor) -> Tensor:
        """Logits (V,) after ``token`` (1, 1), which joins the slots."""
        if len(self.run.first[:1]) + sum(map(_slots, self.parts.values())) >= self.slots:
            self._compress()
        logits, new = self._after([*self.parts.values()], self.run.model.get_input_embeddings()(token), 0.0)
        name = "sink" if self.run.keeps_sink and not self.parts["sink"] else "text"
        self.parts[name] = self.run.concat(self.parts[name], new)
        return logits[0]

    def _compress(self) -> None:
        oldest = [(k[:, :, : self.segment], v[:, :, : self.segment]) for k, v in self.parts["text"]]
        seen = [self.parts["sink"], self.parts["memory"], oldest]
        _, new = self._after(seen, self.run.marks[None], 1.0)
        self.parts["text"] = [(k[:, :, self.segment :], v[:, :, self.segment :]) for k, v in self.parts["text"]]
        memory, self.run.segments = self.parts["memory"], self.run.segments + 1
        if self.run.merge == "mean" and memory:
            n = self.run.segments
            pairs = zip(memory, new, strict=True)
            self.parts["memory"] = [(k + (a - k) / n, v + (b - v) / n) for (k, v), (a, b) in pairs]
        else:
            joined = self.run.concat(memory, new)
            self.parts["memory"] = [(k[:, :, -self.compressed :], v[:, :, -self.compressed :]) for k, v in joined]

    def _after(self, parts: list[Rows], embeds: Tensor, gate: float) -> tuple[Tensor, Rows]:
        """Logits, and new slots as of position 0."""
        kept = self.run.concat(*parts)
        first = len(self.run.first[:1])
        placed = self._rotated(kept, torch.arange(first, first + _slots(kept))) if kept else []
        past = self.run.concat(self.run.first, placed)
        self.run.offset = held = _slots(past)
        logits, rows = self.run.run_model(embeds, past, torch.full((embeds.shape[1],), gate))
        new = [(k[:, :, held:], v[:, :, held:]) for k, v in rows]
        return logits, self._rotated(new, -torch.arange(held, held + embeds.shape[1]))

    def _rotated(self, rows: Rows, steps: Tensor) -> Rows:
        kv = self.own.rotate(KV(tuple(k for k, _ in rows), tuple(v for _, v in rows)), steps)
        return list(zip(kv.keys, kv.values, strict=True))


def _slots(rows: Rows) -> int:
    return rows[0][0].shape[2] if rows else 0
