"""Where a layer's feed-forward block sits, found by running the layer, and what goes into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from byheart.errors import UnsupportedModelError
from byheart.model.anatomy import hooked, with_cache


@dataclass(frozen=True)
class FeedForward:
    """Where a layer's feed-forward block sits: output = residual + scale * post(block(input)).

    ``source`` is the module whose input is the residual and whose output is the block's input, or the block itself
    where it reads the residual.
    """

    block: nn.Module
    source: nn.Module
    post: tuple[nn.Module, ...]
    scale: float

    def finish(self, residual: Tensor, output: Tensor) -> Tensor:
        """The layer's output from the block's."""
        for module in self.post:
            output = module(output)
        return residual + self.scale * output


def feed_forward(layer: nn.Module, given: dict[str, Any], x: Tensor, *, index: int) -> FeedForward:
    """Find the feed-forward block of ``layer`` and how its output joins the residual stream, by hidden states ``x``.

    Raises UnsupportedModelError where the block is not added to the stream after the attention.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    handles = [
        child.register_forward_hook(
            lambda module, args, kwargs, out: calls.append((module, (*args, *kwargs.values())[0], out)),
            with_kwargs=True,
        )
        for child in layer.children()
    ]
    with hooked(handles), torch.no_grad():
        out = layer(x, **with_cache(given, None))
    blocks = [n for n, call in enumerate(calls) if any(isinstance(m, nn.Linear) for m in call[0].modules())]
    refusal = UnsupportedModelError(
        f"layer {index} ({type(layer).__name__}) has no feed-forward block that is added to the stream after attention."
    )
    if len(blocks) < 2:
        raise refusal
    block, block_input, _ = calls[blocks[-1]]
    source, residual, _ = next((call for call in calls[: blocks[-1]] if call[2] is block_input), calls[blocks[-1]])
    post = tuple(call[0] for call in calls[blocks[-1] + 1 :])
    added = calls[-1][2]
    change = (out - residual).float()
    scale = float((change * added.float()).sum() / added.float().pow(2).sum())
    # Rounded where the fit is within rounding errors: a stream without a multiplier must not get one of 0.9999.
    scale = 1.0 if abs(scale - 1.0) < 2e-2 else scale
    close = 1e-4 if x.dtype == torch.float32 else 3e-2
    if (change - scale * added.float()).norm() > close * out.float().norm():
        raise refusal
    return FeedForward(block, source, post, scale)


@dataclass(frozen=True)
class FeedForwardInput:
    """The input of a layer's feed-forward block, and the residual that its output is added to, (B, T, D)."""

    input: Tensor
    residual: Tensor


def find_values(block: nn.Module, *, index: int, dim: int, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """The linear layer of a feed-forward block that writes to the stream: the last one that runs.

    Raises UnsupportedModelError, naming layer ``index``, where the block does not end in one.
    """
    called: list[nn.Linear] = []
    linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
    handles = [linear.register_forward_hook(lambda module, args, out: called.append(module)) for linear in linears]
    with hooked(handles), torch.no_grad():
        block(torch.zeros(1, 1, dim, dtype=dtype, device=device))
    if called[-1].out_features != dim:
        raise UnsupportedModelError(
            f"layer {index}'s feed-forward block ({type(block).__name__}) does not end in a linear layer that "
            "writes to the stream (a mixture of experts?); its keys and values cannot be told apart."
        )
    return called[-1]
