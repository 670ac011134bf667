"""Where a layer's feed-forward block sits, found by running the layer, and what goes into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from byheart.errors import UnsupportedModelError
from byheart.model.anatomy import hooked, with_cache
from byheart.model.linear import LINEARS, Linear, widths


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


Call: TypeAlias = tuple[nn.Module, Tensor, Any]
"""A part of a layer that ran: its input and its output."""


def find_block(layer: nn.Module, given: dict[str, Any], x: Tensor, *, index: int) -> nn.Module:
    """The feed-forward block of ``layer``, wherever it stands in it, beside the attention or after it.

    It is found by hidden states ``x``. Raises UnsupportedModelError where there is none.
    """
    calls, _ = _run(layer, given, x)
    block, block_input, _ = calls[_block_among(calls, layer, index)]
    if block_input.shape[-1] != x.shape[-1]:
        raise UnsupportedModelError(
            f"layer {index} ({type(layer).__name__}) has its feed-forward matrices beside one another, in no block of "
            "their own."
        )
    return block


def feed_forward(layer: nn.Module, given: dict[str, Any], x: Tensor, *, index: int) -> FeedForward:
    """Find the feed-forward block of ``layer`` and how its output joins the residual stream, by hidden states ``x``.

    Raises UnsupportedModelError where the block is not added to the stream after the attention.
    """
    calls, out = _run(layer, given, x)
    place = _block_among(calls, layer, index)
    block, block_input, _ = calls[place]
    source, residual, _ = next((call for call in calls[:place] if call[2] is block_input), calls[place])
    post = tuple(call[0] for call in calls[place + 1 :])
    added = calls[-1][2]
    change = (out - residual).float()
    scale = float((change * added.float()).sum() / added.float().pow(2).sum())
    # Rounded where the fit is within rounding errors: a stream without a multiplier must not get one of 0.9999.
    scale = 1.0 if abs(scale - 1.0) < 2e-2 else scale
    close = 1e-4 if x.dtype == torch.float32 else 3e-2
    if (change - scale * added.float()).norm() > close * out.float().norm():
        raise _refusal(layer, index)
    return FeedForward(block, source, post, scale)


def _run(layer: nn.Module, given: dict[str, Any], x: Tensor) -> tuple[list[Call], Tensor]:
    """The parts of a layer in the order in which they run, and what comes out of the layer."""
    calls: list[Call] = []
    handles = [
        child.register_forward_hook(
            lambda module, args, kwargs, out: calls.append((module, (*args, *kwargs.values())[0], out)),
            with_kwargs=True,
        )
        for child in layer.children()
    ]
    with hooked(handles), torch.no_grad():
        out = layer(x, **with_cache(given, None))
    return calls, out


def _block_among(calls: Sequence[Call], layer: nn.Module, index: int) -> int:
    """Which call is the block's: the last with linear layers, beside another one, which is the attention's."""
    blocks = [n for n, call in enumerate(calls) if any(isinstance(m, LINEARS) for m in call[0].modules())]
    # An attention gives its weights beside its output.
    if len(blocks) < 2 or not isinstance(calls[blocks[-1]][2], Tensor):
        raise _refusal(layer, index)
    return blocks[-1]


def _refusal(layer: nn.Module, index: int) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"layer {index} ({type(layer).__name__}) has no feed-forward block that is added to the stream after attention."
    )


@dataclass(frozen=True)
class FeedForwardInput:
    """The input of a layer's feed-forward block, and the residual that its output is added to, (B, T, D)."""

    input: Tensor
    residual: Tensor


def roles_in(block: nn.Module, linears: Mapping[str, Linear], *, index: int, **about: Any) -> dict[str, str]:
    """Path -> ``keys`` or ``values`` for the linear layers of a block; ``about`` as for ``find_values``."""
    values, inside = find_values(block, index=index, **about), {id(module) for module in block.modules()}
    return {path: "values" if found is values else "keys" for path, found in linears.items() if id(found) in inside}


def find_values(block: nn.Module, *, index: int, dim: int, dtype: torch.dtype, device: torch.device) -> Linear:
    """The linear layer of a feed-forward block that writes to the stream: the last one that runs.

    Raises UnsupportedModelError, naming layer ``index``, where the block does not end in one.
    """
    called: list[Linear] = []
    linears = [module for module in block.modules() if isinstance(module, LINEARS)]
    handles = [linear.register_forward_hook(lambda module, args, out: called.append(module)) for linear in linears]
    with hooked(handles), torch.no_grad():
        block(torch.zeros(1, 1, dim, dtype=dtype, device=device))
    if widths(called[-1])[1] != dim:
        raise UnsupportedModelError(
            f"layer {index}'s feed-forward block ({type(block).__name__}) does not end in a linear layer that "
            "writes to the stream (a mixture of experts?); its keys and values cannot be told apart."
        )
    return called[-1]
