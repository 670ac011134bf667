"""Low-rank updates of linear layers by hook (LoRA, Hu et al. 2021), active at chosen tokens only.

``y = W x + gate * (alpha / rank) * B A x``: the gate is CCM's "conditional LoRA" (arXiv 2312.03414, section 3.1).
Only gated tokens are computed; where none is gated, nothing is. The model keeps its modules and its state dict.

Dimensions: B batch, T tokens, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from byheart.errors import UsageError
from byheart.model.backbone import Backbone
from byheart.model.linear import widths
from byheart.model.reading import LowRankDelta


class LoRA(nn.Module):
    """One low-rank update for each of several linear layers, learned once and shared by all sessions.

    ``down`` (A, R x in) starts random and ``up`` (B, out x R) at zero, so an untrained update changes nothing.

    Args:
        paths: module paths of linear layers in the decoder.
        alpha: the update is scaled by alpha / rank.
        dropout: share of its input that is dropped in training, where it is ``active``.
    """

    def __init__(
        self,
        backbone: Backbone,
        paths: Sequence[str],
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.paths = tuple(paths)
        self.scale, self.dropout = alpha / max(rank, 1), dropout
        generator = torch.Generator().manual_seed(seed)
        self.down = nn.ParameterList()
        self.up = nn.ParameterList()
        for path in self.paths:
            width, height = widths(backbone.linear(path))
            widest = max(width, height)
            if not 0 < rank <= widest:
                raise UsageError(f"rank must be 1 to {widest}, the width of '{path}'; it is {rank}.")
            bound = 1 / math.sqrt(width)
            start = (torch.rand(rank, width, generator=generator) * 2 - 1) * bound
            self.down.append(nn.Parameter(start.to(backbone.device)))
            self.up.append(nn.Parameter(torch.zeros(height, rank, device=backbone.device)))

    def active(self, backbone: Backbone, *, gate: slice | None = None) -> AbstractContextManager[None]:
        """Add the update at the tokens of ``gate`` (all without one). Inside: a hook per layer. After: none."""
        parts = zip(self.paths, self.down, self.up, strict=True)
        return backbone.changing([(backbone.linear(p), partial(self._added, down, up, gate)) for p, down, up in parts])

    def deltas(self, batch: int) -> dict[str, LowRankDelta]:
        """The update at every token, as a reading carries it: path -> the same change for each batch row."""
        return {
            path: LowRankDelta(down.expand(batch, -1, -1), (up * self.scale).expand(batch, -1, -1))
            for path, down, up in zip(self.paths, self.down, self.up, strict=True)
        }

    def _added(
        self, down: Tensor, up: Tensor, gate: slice | None, module: nn.Module, args: tuple[Tensor, ...], out: Tensor
    ) -> Tensor:
        """A linear layer's output with the update; a forward hook once the first three are given."""
        x = (args[0] if gate is None else args[0][:, gate]).to(down.dtype)
        if self.dropout and self.training:
            x = torch.nn.functional.dropout(x, self.dropout)
        change = torch.nn.functional.linear(torch.nn.functional.linear(x, down), up) * self.scale
        if gate is None:
            return out + change.to(out.dtype)
        if torch.is_grad_enabled():
            out = out.clone()
        out[:, gate] += change.to(out.dtype)
        return out
