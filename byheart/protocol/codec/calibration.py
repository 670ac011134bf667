"""Making a codec: what a model's keys and values are like, and what errors in them cost, from a few hundred texts.

A text is read, and what follows it is predicted from its slots. The slots give what they have in common; the gradients
of the predictions give what an error in them costs: for a small error e, the divergence from the exact prediction is
e' F e / 2, F being the Fisher information of the predictions about the slots (Martens 2020, arXiv 1412.1193, section
6). It is kept per head, so weights are one matrix each. The targets are drawn from the model's own predictions, as the
Fisher information asks.

Dimensions: T tokens, L layers of a group, H heads, W head width, N = L H W numbers, F features, C components, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.errors import InputError, UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import KV, Reading
from byheart.protocol.codec.codec import Codec, Group
from byheart.protocol.codec.levels import UNITS
from byheart.protocol.codec.transform import Transform, by_head, features_of, to_int8

WIDEST_GROUP = 8192
"""Numbers of a token's keys, or values, that are coded together at most: covariances have the square of it."""
COMPONENTS = 1728
"""Components that are kept at most; later ones get no bits at the rates that are worth having."""
FEWEST_TOKENS = 2000
_RIDGE = 1e-3
# Least share of a head's largest weight: a direction that no prediction used is not free of cost.
_FLAT = 1e-5
_ITERATIONS, _SPARE = 5, 100
_KEPT, _AT_ONCE = 4096, 1024


@dataclass(frozen=True)
class Example:
    """A text and what is predicted from it.

    ``opening`` (O,) is read before the text exactly and not coded. Of ``following`` (P,), the tokens from ``start`` on
    are predicted.
    """

    opening: Int[Tensor, " O"]
    text: Int[Tensor, " T"]
    following: Int[Tensor, " P"]
    start: int


class _Moments:
    """Second moments of the keys or the values of a group, beside those of the features, and what errors cost."""

    def __init__(self, layers: range, slot: Tensor, features: int) -> None:
        self.layers = layers
        heads, width = slot.shape[1::2]
        numbers = len(layers) * heads * width
        self.slots = torch.zeros(numbers, numbers)
        self.crossed = torch.zeros(features, numbers)
        self.costs = torch.zeros(len(layers) * heads, width, width)
        self.kept: list[Tensor] = []
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, tensors: Sequence[Tensor], features: Tensor, gradients: Sequence[Tensor], *, keep: int) -> None:
        """Take in slots (1, H, M, W) per layer, and the gradients of a prediction's logarithm."""
        x = self._flat(tensors)
        self.kept.append(x[::keep].to(torch.bfloat16))
        self._waiting.append((x, features, self._flat(gradients)))
        if sum(len(part[0]) for part in self._waiting) >= _AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Add up what waits: sums as large as these are not read and written for every text."""
        if not self._waiting:
            return
        x, features, gradients = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self.slots.addmm_(x.T, x)
        self.crossed.addmm_(features.T, x)
        each = gradients.view(-1, *self.costs.shape[:2]).transpose(0, 1)
        self.costs.baddbmm_(each.mT, each)

    def _flat(self, tensors: Sequence[Tensor]) -> Float[Tensor, "M N"]:
        x = torch.stack([tensors[index][0] for index in self.layers]).float().cpu()
        return x.permute(2, 0, 1, 3).reshape(x.shape[2], -1)

    def transform(self, squared: Tensor, tokens: int, components: int, features: Sequence[Tensor]) -> Transform:
        """What codes them, once all texts were taken in.

        Args:
            squared: the features' own second moments.
            features: those of the kept tokens.
        """
        self.settle()
        center = self.crossed[-1] / tokens
        weights = _roots(self.costs / tokens)
        centered = self.slots / tokens - torch.outer(center, center)
        crossed = self.crossed[:-1] / tokens - torch.outer(squared[-1, :-1], center)
        among = squared[:-1, :-1] - torch.outer(squared[-1, :-1], squared[-1, :-1])
        ridge = _RIDGE * among.diagonal().mean() * torch.eye(len(among))
        predicted = torch.linalg.solve(among + ridge, crossed)
        left = _both_sides(centered - crossed.T @ predicted, weights)
        basis, scale = to_int8(_leading(left, min(components, len(left))).T)
        prediction, its_scale = to_int8(predicted.T)
        widths = torch.zeros(len(basis), dtype=torch.int32)
        made = Transform(center, weights, basis, scale, prediction.T.contiguous(), its_scale, widths)
        return _sorted(made, self._spread(made, features))

    def _spread(self, made: Transform, features: Sequence[Tensor]) -> Float[Tensor, " C"]:
        """The mean size of each component."""
        sums = [made.forward(x, f).abs().sum(1) for x, f in zip(self.kept, features, strict=True)]
        return torch.stack(sums).sum(0) / sum(map(len, self.kept))


def calibrate(
    backbone: Backbone,
    examples: Sequence[Example],
    *,
    components: int = COMPONENTS,
    progress: Callable[[int, int], None] | None = None,
) -> Codec:
    """A codec for a model's keys and values in texts like these. Raises InputError for too few of them.

    Args:
        components: of each group's keys, and of its values, at most.
        progress: called with the examples done and the examples in all.
    """
    require_positive(components=components)
    tokens = sum(len(example.text) for example in examples)
    if tokens < FEWEST_TOKENS:
        raise InputError(f"A codec needs {FEWEST_TOKENS} tokens of text to be calibrated; these are {tokens}.")
    embedded = [backbone.embed(example.text[None])[0].detach().float().cpu() for example in examples]
    mean = torch.cat(embedded).mean(0)
    spans = _spans(backbone)
    features = 2 * backbone.dim + 1
    parts = [_Moments(span, backbone.slot.keys[0], features) for span in spans for _ in range(2)]
    squared = torch.zeros(features, features)
    kept: list[Tensor] = []
    keep = max(1, tokens // _KEPT)
    generator = torch.Generator().manual_seed(0)
    for done, (example, embeddings) in enumerate(zip(examples, embedded, strict=True), start=1):
        kv, gradients = _read(backbone, example, generator)
        own = features_of(embeddings - mean)
        with_one = torch.cat([own, torch.ones(len(own), 1)], dim=1)
        squared.addmm_(with_one.T, with_one)
        kept.append(own[::keep])
        for part, tensors, costs in zip(parts, (kv.keys, kv.values) * len(spans), gradients * len(spans), strict=True):
            part.add(tensors, with_one, costs, keep=keep)
        if progress is not None:
            progress(done, len(examples))
    made = [part.transform(squared / tokens, tokens, components, kept) for part in parts]
    groups = [
        Group(span.start, span.stop, keys, values)
        for span, keys, values in zip(spans, made[::2], made[1::2], strict=True)
    ]
    return Codec(backbone, groups, mean)


def find_obstacle(backbone: Backbone) -> str:
    """Why a model can have no codec; empty where it can. Nothing is calibrated to find out."""
    shapes = {tuple(part.shape) for part in (*backbone.slot.keys, *backbone.slot.values)}
    if len(shapes) == 1:
        return ""
    return f"its layers have keys and values of {len(shapes)} different shapes, which cannot be coded together"


def _spans(backbone: Backbone) -> list[range]:
    """Layers in groups of about one size, each with no more numbers than ``WIDEST_GROUP``."""
    obstacle = find_obstacle(backbone)
    if obstacle:
        raise UsageError(
            f"No codec can be made for this model: {obstacle}; use a method that needs none, such as full."
        )
    layers = len(backbone.layers)
    groups = math.ceil(layers * backbone.slot.keys[0][0, :, 0].numel() / WIDEST_GROUP)
    ends = [round(layers * group / groups) for group in range(groups + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


def _read(
    backbone: Backbone, example: Example, generator: torch.Generator
) -> tuple[KV, tuple[tuple[Tensor, ...], ...]]:
    """The un-rotated slots of an example's text, and the gradients of what is predicted from them."""
    with torch.no_grad():
        opening = backbone.prefill(example.opening[None]) if len(example.opening) else None
        start = len(example.opening)
        kv = backbone.prefill(example.text[None], opening)
    leaves = KV(*(tuple(part.detach().clone().requires_grad_() for part in parts) for parts in (kv.keys, kv.values)))
    prefix = opening.append(leaves) if opening else leaves
    with torch.enable_grad():
        with backbone.reading([Reading(prefix)], room=len(example.following)) as cache:
            hidden = backbone.hidden(example.following[None], cache=cache)[0, example.start :]
        scores = torch.log_softmax(backbone.logits(hidden), dim=-1)
        drawn = torch.multinomial(scores.detach().exp().cpu(), 1, generator=generator).to(scores.device)
        # As of one prediction, whatever their number.
        loss = scores.gather(1, drawn).sum() / math.sqrt(len(drawn))
        gradients = torch.autograd.grad(loss, (*leaves.keys, *leaves.values))
    layers = len(leaves.keys)
    steps = -torch.arange(start, start + kv.slots, device=kv.keys[0].device)
    turned = backbone.rotate(KV(gradients[:layers], gradients[layers:]), steps)
    return backbone.rotate(kv, steps), (turned.keys, turned.values)


def _sorted(made: Transform, spread: Float[Tensor, " C"]) -> Transform:
    """The same transform with its widest components first, and their widths."""
    order = spread.argsort(descending=True)
    widths = (spread[order].clamp(min=1e-12).log2() * UNITS).round().to(torch.int32)
    return replace(made, basis=made.basis[order], basis_scale=made.basis_scale[order], widths=widths)


def _roots(squares: Float[Tensor, "LH W W"]) -> Float[Tensor, "LH W W"]:
    """The symmetric square roots of matrices, no direction of which is taken for free."""
    values, vectors = torch.linalg.eigh(squares)
    most = values.amax()
    values = torch.maximum(values.clamp(min=most * 1e-9), values.amax(-1, keepdim=True) * _FLAT)
    roots: Tensor = (vectors * values.sqrt()[:, None]) @ vectors.mT
    return roots


def _both_sides(square: Float[Tensor, "N N"], weights: Float[Tensor, "LH W W"]) -> Float[Tensor, "N N"]:
    once = by_head(square, weights)
    twice = by_head(once.T.contiguous(), weights)
    return (twice + twice.T) / 2


def _leading(square: Float[Tensor, "N N"], count: int) -> Float[Tensor, "N C"]:
    """The eigenvectors of the largest eigenvalues, nearly, by subspace iteration (Halko et al. 2011, section 4.5)."""
    start = torch.randn(len(square), min(len(square), count + _SPARE), generator=torch.Generator().manual_seed(0))
    span = torch.linalg.qr(square @ start)[0]
    for _ in range(_ITERATIONS):
        span = torch.linalg.qr(square @ span)[0]
    _, vectors = torch.linalg.eigh(span.T @ square @ span)
    leading: Tensor = (span @ vectors.flip(1))[:, :count]
    return leading
