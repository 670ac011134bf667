"""A prefix of keys and values, tuned on the text to stand for it (Cartridges, Eyuboglu et al. 2025, arXiv 2506.06266).

The prefix starts as the keys and values of the text's first tokens and is the only thing that is learned: AdamW on the
next-token loss of chunks drawn from the text, each read right after the prefix, and where asked for on the divergence
from the same model with all the text before the chunk in front of it. The first slot is not tuned, since it is the
attention sink. The paper's self-study, conversations that the model makes up about the text, is not part of it; by the
paper, next-token loss on the text alone answers worse.

Later texts tune the same slots further, so earlier ones fade.

State: `keys.l`, `values.l` (B, H, M, W) per layer, keys at positions 0 to M - 1; M <= slots; coded where ``bits``
is not 16.

Dimensions: B batch, H heads, M slots, T tokens, D hidden, W head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

import torch
from torch import Tensor

from byheart.errors import UsageError, require_not_negative, require_positive
from byheart.model.backbone import Backbone
from byheart.model.losses import make_reference, token_losses
from byheart.model.optimize import descend, require_steps
from byheart.model.reading import KV, Reading
from byheart.protocol.kv_method import SlotMethod
from byheart.protocol.kv_slots import concat, map_slots
from byheart.protocol.segments import require_learnable, require_positions
from byheart.protocol.size import slots_size
from byheart.protocol.state import State


class Cartridge(SlotMethod):
    """Keeps ``slots`` slots that were tuned on the text.

    Args:
        steps, learning_rate, clip: of AdamW; each step learns one chunk.
        chunk_tokens: tokens of a chunk; a shorter text is one chunk.
        kl: weight of the divergence from the model that has the whole text in front of it; the text must then be no
            longer than the model's positions.
        seed: of the choice of chunks.
        bits: of each number that is kept; 8 or 4 code what was tuned, and the first slot once.
    """

    name = "cartridge"
    size = slots_size(itemgetter("slots"), lambda slots: {"slots": slots}, least=2, within_text=True)

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
        bits: int = 16,
    ) -> None:
        SlotMethod.__init__(self, backbone, bits=bits)
        require_positive(learning_rate=learning_rate, clip=clip)
        require_steps(steps)
        if min(slots, chunk_tokens) < 2:
            raise UsageError(f"slots and chunk_tokens must be 2 or more; they are {slots} and {chunk_tokens}.")
        require_not_negative(kl=kl)
        self.slots, self.steps, self.learning_rate, self.chunk_tokens = slots, steps, learning_rate, chunk_tokens
        self.kl, self.clip, self.seed = kl, clip, seed
        self.capacity = slots

    def write(self, state: State, segment: Tensor) -> State:
        """Tune the slots on ``segment``, from what was learned before."""
        require_learnable(segment)
        tokens = segment.to(self.backbone.device)
        with torch.no_grad():
            start = self._start(self.coding.to_kv(state), tokens)
            teacher = self._read_whole(tokens) if self.kl else None
        return self.coding.to_state(start.slice(0, 1).append(self._tune(start, tokens, teacher)))

    def read(self, state: State) -> Reading:
        """The slots, as they were tuned."""
        kv = self.coding.to_plain(state)
        return Reading(kv, batch=kv.batch) if kv else Reading()

    def _start(self, past: KV | None, tokens: Tensor) -> KV:
        """The slots before tuning; those that are missing are the text's first."""
        if past and past.slots == self.slots:
            return past
        missing = self.slots - (past.slots if past else 0)
        return concat(past, self.backbone.prefill(tokens[:, :missing], past))

    def _read_whole(self, tokens: Tensor) -> Tensor:
        """Hidden states (B, T, D) of the text as a whole. Raises InputError."""
        require_positions(self.backbone, tokens.shape[1], "write it in parts, or take kl=0")
        return self.backbone.hidden(tokens)

    # Tensors made in inference mode cannot be tuned, whatever mode the caller is in.
    @torch.inference_mode(False)
    def _tune(self, start: KV, tokens: Tensor, teacher: Tensor | None) -> KV:
        """The slots after the first one, tuned."""
        sink, tokens = map_slots(Tensor.detach, start.slice(0, 1)), tokens.clone()
        chunks = draw_chunks(tokens.shape[1], chunk_tokens=self.chunk_tokens, seed=self.seed)
        # Each row of the batch has leaves of its own: gradients are clipped per text.
        # In float32: small steps would vanish in bfloat16.
        leaves = [
            map_slots(lambda part: part.detach().float().clone().requires_grad_(), row) for row in start.slice(1).rows()
        ]

        def loss() -> Tensor:
            span, prefix, reference = next(chunks), sink.append(self._stack(leaves)), None
            chunk = tokens[:, span]
            with self.backbone.reading([Reading(prefix, batch=prefix.batch)], room=chunk.shape[1]) as cache:
                hidden = self.backbone.hidden(chunk, cache=cache)[:, :-1]
            if teacher is not None:
                reference = make_reference(self.backbone, teacher[:, span][:, :-1].flatten(0, 1))
            targets = chunk[:, 1:].flatten()
            losses = token_losses(self.backbone, hidden.flatten(0, 1), targets, reference=reference, kl=self.kl)
            # A sum over rows, so that each learns as if it were alone.
            return losses.total.mean() * prefix.batch

        groups = [[*row.keys, *row.values] for row in leaves]
        descend(groups, loss, steps=self.steps, learning_rate=self.learning_rate, clip=self.clip)
        return map_slots(Tensor.detach, self._stack(leaves))

    def _stack(self, rows: list[KV]) -> KV:
        """Rows of a batch that are tuned apart, as one batch in the model's type."""
        return map_slots(lambda *parts: torch.cat(parts).to(self.backbone.dtype), *rows)


def draw_chunks(length: int, *, chunk_tokens: int, seed: int) -> Iterator[slice]:
    """A random chunk of a text of ``length`` tokens for each step, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        start = int(torch.randint(max(1, length - chunk_tokens + 1), (1,), generator=generator))
        yield slice(start, min(start + chunk_tokens, length))
