"""A prefix of keys and values, tuned on the text to stand for it (Cartridges, Eyuboglu et al. 2025, arXiv 2506.06266).

The prefix starts as the keys and values of the text's first tokens and is the only thing that is learned: AdamW on the
next-token loss of chunks drawn from the text, each read right behind the prefix, and where asked for on the divergence
from the same model with all the text before the chunk in front of it. The first row is not tuned, since it is the
attention sink. The paper's self-study, conversations that the model makes up about the text, is not part of it; by the
paper, next-token loss on the text alone stays behind it.

Later texts go on tuning the same rows, so earlier ones fade.

State: `keys.l`, `values.l` (B, H, M, W) a layer, keys at positions 0 to M - 1; M <= slots.

Dimensions: B batch, H heads, M rows, T tokens, D hidden, W head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from byheart.errors import InputError, UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.losses import make_reference, token_losses
from byheart.model.optimize import descend
from byheart.model.reading import KV, Reading
from byheart.protocol.kv_slots import concat, kv_to_state, slots_within, state_to_kv
from byheart.protocol.method import Method
from byheart.protocol.state import State


class Cartridge(Method):
    """Keeps ``slots`` rows that were tuned on the text.

    Args:
        steps, learning_rate, clip: of AdamW; each step learns one chunk.
        chunk_tokens: of a chunk; a shorter text is one chunk.
        kl: weight of the divergence from the model that has the whole text in front of it; the text must then be no
            longer than the model's positions.
        seed: of the choice of chunks.
    """

    name = "cartridge"

    def __init__(
        self,
        backbone: Backbone,
        *,
        slots: int = 64,
        steps: int = 50,
        learning_rate: float = 1e-2,
        chunk_tokens: int = 256,
        kl: float = 0.0,
        clip: float = 1.0,
        seed: int = 0,
    ) -> None:
        Method.__init__(self, backbone)
        require_positive(steps=steps, learning_rate=learning_rate, clip=clip)
        if min(slots, chunk_tokens) < 2:
            raise UsageError(f"slots and chunk_tokens must be 2 or more; they are {slots} and {chunk_tokens}.")
        if kl < 0:
            raise UsageError(f"kl must be 0 or more; it is {kl}.")
        self.slots, self.steps, self.learning_rate, self.chunk_tokens = slots, steps, learning_rate, chunk_tokens
        self.kl, self.clip, self.seed = kl, clip, seed
        self.capacity = slots

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """As many rows as fit, and no more than the text has."""
        return {"slots": max(2, min(tokens, slots_within(backbone, budget, name=cls.name, least=2)))}

    def init(self) -> State:
        """No rows."""
        return {}

    def write(self, state: State, segment: Tensor) -> State:
        """Tune the rows on ``segment``, going on from what was learned before."""
        if segment.shape[1] < 2:
            raise InputError("The text is too short to learn: give at least two tokens.")
        tokens = segment.to(self.backbone.device)
        with torch.no_grad():
            start = self._started(state_to_kv(state), tokens)
            taught = self._taught(tokens) if self.kl else None
        return kv_to_state(self._tuned(start, tokens, taught))

    def read(self, state: State) -> Reading:
        """The rows, as they were tuned."""
        held = state_to_kv(state)
        return Reading(held, batch=held.batch) if held else Reading()

    def _started(self, held: KV | None, tokens: Tensor) -> KV:
        """The rows before tuning; those that are missing are the text's first."""
        missing = self.slots - (held.slots if held else 0)
        if not missing:
            return held or self.backbone.prefill(tokens[:, :0])
        new = self.backbone.prefill(tokens[:, :missing], held)
        return concat(held, new)

    def _taught(self, tokens: Tensor) -> Tensor:
        """Hidden states (B, T, D) of the text as a whole. Raises InputError."""
        if tokens.shape[1] > self.backbone.positions:
            raise InputError(
                f"The text has {tokens.shape[1]} tokens, but the model reads at most {self.backbone.positions}; "
                "write it in parts, or make the memory with kl=0."
            )
        return self.backbone.hidden(tokens)

    def _chunks(self, length: int) -> Iterator[slice]:
        """A chunk of the text for each step, drawn by the seed alone."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            start = int(torch.randint(max(1, length - self.chunk_tokens + 1), (1,), generator=generator))
            yield slice(start, min(start + self.chunk_tokens, length))

    # Tensors made in inference mode cannot be tuned, whatever mode the caller is in.
    @torch.inference_mode(False)
    def _tuned(self, start: KV, tokens: Tensor, taught: Tensor | None) -> KV:
        sink, chunks, tokens = start.slice(0, 1), self._chunks(tokens.shape[1]), tokens.clone()
        learned = [_leaves(row) for row in start.slice(1).rows()]

        def loss() -> Tensor:
            chunk = next(chunks)
            prefix = sink.append(_joined(learned, self.backbone.dtype))
            target = None if taught is None else taught[:, chunk]
            return self._loss(prefix, tokens[:, chunk], target)

        groups = [[*row.keys, *row.values] for row in learned]
        descend(groups, loss, steps=self.steps, learning_rate=self.learning_rate, clip=self.clip)
        return sink.append(_joined(learned, self.backbone.dtype)).detach()

    def _loss(self, prefix: KV, chunk: Tensor, taught: Tensor | None) -> Tensor:
        """Of each row's next tokens, summed over rows, so that each learns as if it were alone."""
        with self.backbone.reading([Reading(prefix, batch=prefix.batch)], room=chunk.shape[1]) as cache:
            hidden = self.backbone.hidden(chunk, cache=cache)[:, :-1]
        reference = None if taught is None else make_reference(self.backbone, taught[:, :-1].flatten(0, 1))
        losses = token_losses(
            self.backbone, hidden.flatten(0, 1), chunk[:, 1:].flatten(), reference=reference, kl=self.kl
        )
        return losses.total.mean() * prefix.batch


def _leaves(rows: KV) -> KV:
    """Copies to be tuned, in float32: small steps would vanish in bfloat16."""
    keys, values = (
        tuple(part.detach().float().clone().requires_grad_() for part in parts) for parts in (rows.keys, rows.values)
    )
    return KV(keys, values)


def _joined(rows: list[KV], dtype: torch.dtype) -> KV:
    """Rows of a batch that are tuned apart, as one."""
    return KV(
        tuple(torch.cat(parts).to(dtype) for parts in zip(*(row.keys for row in rows), strict=True)),
        tuple(torch.cat(parts).to(dtype) for parts in zip(*(row.values for row in rows), strict=True)),
    )
