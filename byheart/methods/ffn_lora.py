"""A low-rank update of feed-forward keys or values, tuned on the text (Qiu et al. 2024, arXiv 2402.12233).

A feed-forward layer is a memory of keys (the matrices that match its input: gate and up) and values (the one that
writes to the stream: down). The paper asks which of the two to change; here it is an option.

State: `down.<path>` (B, R, in) and `up.<path>` (B, out, R) for each updated weight, float32; the scale is in `up`.

Dimensions: B batch, R rank, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from byheart.errors import UsageError, require_one_of, require_positive
from byheart.model.backbone import Backbone
from byheart.model.linear import widths
from byheart.model.losses import next_token_loss
from byheart.model.optimize import descend, require_steps
from byheart.model.reading import LowRankDelta, Reading
from byheart.protocol.method import Method
from byheart.protocol.segments import require_learnable, split_segments
from byheart.protocol.state import State, stack, unstack


class FFNLoRA(Method):
    """Keeps a low-rank update of the chosen layers' feed-forward keys or values, and no text.

    Args:
        role: ``keys`` updates the gate and up matrices, ``values`` the down matrix.
        layers: which layers; none means the last quarter.
        rank, alpha: of the update, scaled by alpha / rank.
        steps, learning_rate, clip: of AdamW on the text's next-token loss.
        chunk_tokens: longer text is learned in pieces of this many tokens, one after another.
        seed: of the update's start.
    """

    name = "ffn-lora"

    def __init__(
        self,
        backbone: Backbone,
        *,
        role: str = "keys",
        layers: Sequence[int] = (),
        rank: int = 8,
        alpha: float = 16.0,
        steps: int = 10,
        learning_rate: float = 1e-3,
        clip: float = 1.0,
        chunk_tokens: int = 1024,
        seed: int = 0,
    ) -> None:
        Method.__init__(self, backbone)
        require_positive(rank=rank, alpha=alpha, learning_rate=learning_rate, clip=clip)
        require_steps(steps)
        depth = len(backbone.layers)
        if chunk_tokens < 2:
            raise UsageError(f"chunk_tokens must be 2 or more, or no token has a next one; it is {chunk_tokens}.")
        if rank > backbone.dim:
            raise UsageError(f"rank must be at most {backbone.dim}, the model's width; it is {rank}.")
        require_one_of("role", role, ("keys", "values"))
        if any(not 0 <= layer < depth for layer in layers):
            raise UsageError(f"layers must lie between 0 and {depth - 1}; they are {list(layers)}.")
        self.role, self.rank, self.alpha = role, rank, alpha
        self.layers = list(layers) or list(range(depth - max(1, depth // 4), depth))
        self.steps, self.learning_rate, self.clip = steps, learning_rate, clip
        self.chunk_tokens, self.seed = chunk_tokens, seed
        self._paths = [p for i in self.layers for p, found in backbone.feed_forward_roles(i).items() if found == role]

    def init(self) -> State:
        """A random start for ``down`` and zero for ``up``: no change yet."""
        generator = torch.Generator().manual_seed(self.seed)
        state = {}
        for path in self._paths:
            width, height = widths(self.backbone.linear(path))
            start = torch.randn(1, self.rank, width, generator=generator) / width**0.5
            state[f"down.{path}"] = start.to(self.backbone.device)
            state[f"up.{path}"] = torch.zeros(1, height, self.rank, device=self.backbone.device)
        return state

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return split_segments(segment, longest=self.chunk_tokens, shortest=2)

    def write(self, state: State, segment: Tensor) -> State:
        """Tune on ``segment``, from what was learned before."""
        require_learnable(segment)
        for piece in self.pieces(segment):
            state = self._learn(state, piece)
        return state

    def read(self, state: State) -> Reading:
        """The updates; no prefix."""
        return Reading(deltas=_updates(state, self._paths), batch=next(iter(state.values())).shape[0])

    # Tensors made in inference mode cannot be tuned, whatever mode the caller is in.
    @torch.inference_mode(False)
    def _learn(self, state: State, piece: Tensor) -> State:
        scale = self.alpha / self.rank
        leaves = [
            {name: (t / scale if name.startswith("up.") else t).requires_grad_() for name, t in row.items()}
            for row in unstack(state)
        ]
        tokens = piece.to(self.backbone.device)
        with torch.no_grad(), self.backbone.upper(min(self.layers)) as taken:
            self.backbone.hidden(tokens)

        def scaled(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: t * scale if name.startswith("up.") else t for name, t in row.items()}

        def loss() -> Tensor:
            with self.backbone.deltas([_updates(scaled(row), self._paths) for row in leaves]):
                hidden = self.backbone.resume(taken[0])
            # A sum over rows, so that each learns as if it were alone.
            return next_token_loss(self.backbone, hidden, tokens) * len(leaves)

        groups = [list(row.values()) for row in leaves]
        descend(groups, loss, steps=self.steps, learning_rate=self.learning_rate, clip=self.clip)
        return stack([{name: t.detach() for name, t in scaled(row).items()} for row in leaves])


def _updates(state: State, paths: Sequence[str]) -> dict[str, LowRankDelta]:
    return {path: LowRankDelta(state[f"down.{path}"], state[f"up.{path}"]) for path in paths}
