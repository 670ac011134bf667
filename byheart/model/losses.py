"""Next-token losses that never hold all logits.

A loss against a hard target and a frozen reference distribution needs the reference only as its mean output
embedding: sum_v p(v) log q(v) = h . (sum_v p(v) W_v) - logsumexp(W h). So the T x V reference is never kept, and one
step costs two matrix products with the head, as plain cross-entropy does.

Dimensions: N tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from byheart.model.backbone import Backbone

CHUNK_LOGITS = 1 << 24


@dataclass(frozen=True)
class Reference:
    """What a KL divergence needs of a frozen reference distribution of N tokens.

    ``mean`` (N, D): its mean row of the output head. ``bias`` (N,): its mean output bias. ``negentropy`` (N,):
    sum p log p. ``hidden`` (N, D): the states it came from, used where the head is not linear.
    """

    mean: Tensor
    bias: Tensor
    negentropy: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class TokenLosses:
    """Losses of N tokens. ``total`` = ``cross_entropy`` + kl * ``divergence``; only it carries gradients."""

    total: Tensor
    cross_entropy: Tensor
    divergence: Tensor


class LogitsBuffer:
    """Room for a chunk of logits, kept over many steps: a fresh large buffer costs its page faults each time."""

    def __init__(self) -> None:
        self._kept: dict[torch.dtype, Tensor] = {}

    def like(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor (rows, columns); the next call for its type may return the same room."""
        kept = self._kept.get(dtype)
        if kept is None or kept.shape[0] < rows or kept.shape[1] != columns or kept.device != device:
            kept = self._kept[dtype] = torch.empty(rows, columns, dtype=dtype, device=device)
        return kept[:rows]


def chunks(backbone: Backbone, tokens: int) -> Iterable[slice]:
    """Even slices of ``tokens`` whose logits stay within 64 MiB; a short last one would cost almost as much."""
    most = max(16, CHUNK_LOGITS // backbone.head.out_features)
    size = math.ceil(tokens / max(1, math.ceil(tokens / most)))
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, max(1, size)))


def make_reference(backbone: Backbone, hidden: Float[Tensor, "N D"]) -> Reference:
    """The distribution that the frozen model gives at ``hidden``."""
    weight, bias = backbone.head.weight, backbone.head.bias
    parts = []
    with torch.no_grad():
        for piece in chunks(backbone, hidden.shape[0]):
            log_p = torch.log_softmax(backbone.logits(hidden[piece].to(weight.dtype)), dim=-1)
            p = log_p.exp()
            mean = (p.to(weight.dtype) @ weight).float()
            parts.append((mean, p @ bias.float() if bias is not None else p.new_zeros(len(p)), (p * log_p).sum(-1)))
    mean, bias_part, negentropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return Reference(mean, bias_part, negentropy, hidden)


def token_losses(
    backbone: Backbone,
    hidden: Float[Tensor, "N D"],
    targets: Int[Tensor, " N"],
    *,
    reference: Reference | None = None,
    kl: float | Float[Tensor, " N"] = 0.0,
    scratch: LogitsBuffer | None = None,
) -> TokenLosses:
    """Cross-entropy of each token plus ``kl``, one number or one for each, times KL(reference || model) at each.

    ``scratch`` saves a loop over the same texts the cost of fresh buffers.
    """
    if backbone.softcap is not None:
        return _general_losses(backbone, hidden, targets, reference, kl)
    weight, bias, scale = backbone.head.weight, backbone.head.bias, backbone.logit_scale
    pull: Tensor = weight[targets].float()
    strength: float | Tensor = 1.0
    if reference is not None:
        each = kl[:, None] if isinstance(kl, Tensor) else kl
        pull, strength = pull + each * reference.mean, 1.0 + each
    lse: Tensor = _LogSumExp.apply(hidden, pull, strength, backbone, scratch or LogitsBuffer())  # type: ignore[no-untyped-call]
    x = hidden.detach().float()
    target = (weight[targets].float() * x).sum(-1)
    if bias is not None:
        target = target + bias[targets].float()
    ce = lse.detach() - scale * target
    divergence = torch.zeros_like(ce)
    if reference is not None:
        expected = (reference.mean * x).sum(-1) + reference.bias
        divergence = reference.negentropy + lse.detach() - scale * expected
    # The gradient of the whole loss flows through ``lse``; the rest of the value is added as a number.
    return TokenLosses(lse + (ce + kl * divergence - lse).detach(), ce, divergence)


class _LogSumExp(torch.autograd.Function):
    """logsumexp of the logits; its gradient is that of the whole soft-target loss, made in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, pull: Tensor, strength: float | Tensor, backbone: Backbone, scratch: LogitsBuffer
    ) -> Tensor:
        weight, bias, scale = backbone.head.weight, backbone.head.bias, backbone.logit_scale
        lse = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        grad = torch.empty_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        for piece in chunks(backbone, hidden.shape[0]):
            rows = hidden[piece].to(weight.dtype)
            logits = scratch.like(len(rows), len(weight), weight.dtype, rows.device)
            torch.mm(rows, weight.T, out=logits)
            if bias is not None:
                logits += bias
            if scale != 1.0:
                logits *= scale
            top, where = logits.max(-1, keepdim=True)
            p = _softmax(logits, scratch)
            lse[piece] = (top.float() - p.gather(-1, where).log()).squeeze(-1)
            if grad is not None:
                mean = (logits.copy_(p) @ weight).float()
                each = strength[piece] if isinstance(strength, Tensor) else strength
                grad[piece] = scale * (each * mean - pull[piece])
        ctx.grad = grad
        ctx.kind = hidden.dtype
        return lse

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad = (ctx.grad * upstream[:, None]).to(ctx.kind) if ctx.grad is not None else None
        return grad, None, None, None, None


def _softmax(logits: Tensor, scratch: LogitsBuffer) -> Tensor:
    """In float32, in the scratch's room; in place where the logits are already float32."""
    if logits.dtype == torch.float32:
        return torch.softmax(logits, dim=-1, out=logits)
    rows, columns = logits.shape
    wide = scratch.like(rows, columns, torch.float32, logits.device).copy_(logits)
    return torch.softmax(wide, dim=-1, out=wide)


def _general_losses(
    backbone: Backbone, hidden: Tensor, targets: Tensor, reference: Reference | None, kl: float | Tensor
) -> TokenLosses:
    """The same for a head that is not linear (a soft cap); one chunk of logits is held at a time."""

    def log_softmax(states: Tensor) -> Tensor:
        return torch.log_softmax(backbone.logits(states.to(backbone.head.weight.dtype)), dim=-1)

    def chunk_losses(piece: slice) -> tuple[Tensor, Tensor]:
        log_q = log_softmax(hidden[piece])
        ce = -log_q.gather(-1, targets[piece][:, None]).squeeze(-1)
        if reference is None:
            return ce, torch.zeros_like(ce)
        with torch.no_grad():
            log_p = log_softmax(reference.hidden[piece])
        return ce, (log_p.exp() * (log_p - log_q)).sum(-1)

    parts = [checkpoint(chunk_losses, piece, use_reentrant=False) for piece in chunks(backbone, len(hidden))]
    ce, divergence = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenLosses(ce + kl * divergence, ce.detach(), divergence.detach())


def next_token_loss(backbone: Backbone, hidden: Float[Tensor, "B T D"], tokens: Int[Tensor, "B T"]) -> Tensor:
    """Mean cross-entropy of ``tokens[:, 1:]`` given the states at ``tokens[:, :-1]``."""
    rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    return token_losses(backbone, rows, tokens[:, 1:].reshape(-1).to(rows.device)).total.mean()
