"""Making a codec: what a model's keys and values are like, and what errors in them cost, from a few hundred texts.

A text is read, and what follows it is predicted from its slots. The slots give what they have in common; the gradients
of the predictions give what an error in them costs: for a small error e, the divergence from the exact prediction is
e' F e / 2, F being the Fisher information of the predictions about the slots (Martens 2020, arXiv 1412.1193, section
6). It is kept per head, so weights are one matrix each. The targets are drawn from the model's own predictions, as the
Fisher information asks.

Dimensions: T tokens, L layers of a group, H heads, W head width, N = 2 L H W numbers, F features, C components.
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
from byheart.model.lower_layers import input_of
from byheart.model.reading import KV, Reading
from byheart.protocol.codec.codec import Codec, Group
from byheart.protocol.codec.levels import UNITS
from byheart.protocol.codec.transform import Transform, by_head, explaining, features_of, to_int8

WIDEST_GROUP = 8192
"""Numbers of a token that are coded together at most: covariances have the square of it."""
COMPONENTS = 2816
"""Components of a group that are kept; later ones get no bits at the rates that are worth having."""
RUN_AGAIN = 5
"""One layer in so many is run again instead of being coded."""
FEWEST_TOKENS = 2000
_RIDGE = 1e-3
# Least share of a head's largest weight: a direction that no prediction used is not free of cost.
_FLAT = 1e-5
# Tokens whose slots and gradients are kept for what is measured last, and tokens that are added up at once.
_KEPT, _AT_ONCE = 16384, 1024
# Of the regression of importance: the penalty of what a feature explains, steps, and the largest logarithm.
_PENALTY, _STEPS, _MOST = 1e-2, 60, 8.0


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
    """Second moments of the slots of a group of layers, beside those of the features, and what errors cost."""

    def __init__(self, layers: range, slot: Tensor, features: int) -> None:
        self.layers = layers
        heads, width = slot.shape[1::2]
        self.heads = 2 * len(layers) * heads
        numbers = self.heads * width
        self.slots = torch.zeros(numbers, numbers)
        self.crossed = torch.zeros(features, numbers)
        self.costs = torch.zeros(self.heads, width, width)
        self.kept: list[tuple[Tensor, Tensor]] = []
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, slots: KV, features: Tensor, gradients: KV, *, keep: int) -> None:
        """Take in slots (1, H, M, W) per layer, and the gradients of a prediction's logarithm."""
        x, costs = self._flat(slots), self._flat(gradients)
        self.kept.append((x[::keep].to(torch.bfloat16), costs[::keep].to(torch.bfloat16)))
        self._waiting.append((x, features, costs))
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

    def _flat(self, kv: KV) -> Float[Tensor, "M N"]:
        own = slice(self.layers.start, self.layers.stop)
        x = torch.cat([*kv.keys[own], *kv.values[own]])
        return x.float().cpu().permute(2, 0, 1, 3).reshape(x.shape[2], -1)

    def transform(self, squared: Tensor, tokens: int, components: int, known: Sequence[Tensor]) -> Transform:
        """What codes them, once all texts were taken in.

        Args:
            squared: the features' own second moments.
            known: the features of the kept tokens, text by text.
        """
        self.settle()
        center = self.crossed[-1] / tokens
        weights = _roots(self.costs / tokens)
        centered = self.slots / tokens - torch.outer(center, center)
        crossed = self.crossed[:-1] / tokens - torch.outer(squared[-1, :-1], center)
        among = squared[:-1, :-1] - torch.outer(squared[-1, :-1], squared[-1, :-1])
        ridge = _RIDGE * among.diagonal().mean() * torch.eye(len(among))
        predicted = torch.linalg.solve(among + ridge, crossed)
        leading = torch.linalg.eigh(_both_sides(centered - crossed.T @ predicted, weights))[1].flip(1)
        basis, scale = to_int8(leading[:, :components].T)
        prediction, its_scale = to_int8(predicted.T)
        widths = torch.zeros(len(basis), dtype=torch.int32)
        made = Transform(center, weights, basis, scale, prediction.T.contiguous(), its_scale, widths, torch.zeros(0))
        return self._finish(made, known)

    def _finish(self, made: Transform, known: Sequence[Tensor]) -> Transform:
        """The same with its components in the order of their widths, and with what tells a token's importance."""
        components = [made.forward(x.float(), f).float() for (x, _), f in zip(self.kept, known, strict=True)]
        spread = torch.cat(components).abs().mean(0)
        order = spread.argsort(descending=True)
        widths = (spread[order].clamp(min=1e-12).log2() * UNITS).round().to(torch.int32)
        made = replace(made, basis=made.basis[order], basis_scale=made.basis_scale[order], widths=widths)
        telling = [explaining(y[:, order], widths, f) for y, f in zip(components, known, strict=True)]
        costs = [made.cost(gradients.float()) for _, gradients in self.kept]
        return replace(made, importance=_explain(telling, costs))


def calibrate(
    backbone: Backbone,
    examples: Sequence[Example],
    *,
    start: int | None = None,
    components: int = COMPONENTS,
    progress: Callable[[int, int], None] | None = None,
) -> Codec:
    """A codec for a model's keys and values in texts like these. Raises InputError for too few, UsageError.

    Args:
        start: the first layer that is coded; one in ``RUN_AGAIN`` stands below it where nothing is said.
        components: of each group, at most.
        progress: called with the examples done and the examples in all.
    """
    require_positive(components=components)
    tokens = sum(len(example.text) for example in examples)
    if tokens < FEWEST_TOKENS:
        raise InputError(f"A codec needs {FEWEST_TOKENS} tokens of text to be calibrated; these are {tokens}.")
    first = len(backbone.layers) // RUN_AGAIN if start is None else start
    if not 0 <= first < len(backbone.layers):
        raise UsageError(f"start must be one of the model's {len(backbone.layers)} layers; it is {first}.")
    spans = _spans(backbone, first)
    features = backbone.dim + 1
    parts = [_Moments(span, backbone.slot.keys[0], features) for span in spans]
    squared = torch.zeros(features, features)
    kept: list[Tensor] = []
    keep = max(1, tokens // _KEPT)
    generator = torch.Generator().manual_seed(0)
    for done, example in enumerate(examples, start=1):
        kv, hidden, gradients = _read(backbone, example, first, generator)
        own = features_of(hidden)
        with_one = torch.cat([own, torch.ones(len(own), 1)], dim=1)
        squared.addmm_(with_one.T, with_one)
        kept.append(own[::keep])
        for part in parts:
            part.add(kv, with_one, gradients, keep=keep)
        if progress is not None:
            progress(done, len(examples))
    mean = squared[-1, :-1] / tokens
    known = [own - mean for own in kept]
    groups = [
        Group(part.layers.start, part.layers.stop, part.transform(squared / tokens, tokens, components, known))
        for part in parts
    ]
    return Codec(backbone, groups, mean)


def find_obstacle(backbone: Backbone) -> str:
    """Why a model can have no codec; empty where it can. Nothing is calibrated to find out."""
    if not backbone.anatomy.rotations:
        return "its positions are not rotary, so its keys cannot be moved"
    shapes = {tuple(part.shape) for part in (*backbone.slot.keys, *backbone.slot.values)}
    if len(shapes) == 1:
        return ""
    return f"its layers have keys and values of {len(shapes)} different shapes, which cannot be coded together"


def _spans(backbone: Backbone, first: int) -> list[range]:
    """Layers from ``first`` on, in groups of about one size, each with no more numbers than ``WIDEST_GROUP``."""
    obstacle = find_obstacle(backbone)
    if obstacle:
        raise UsageError(
            f"No codec can be made for this model: {obstacle}; use a method that needs none, such as full."
        )
    layers = len(backbone.layers) - first
    groups = math.ceil(2 * layers * backbone.slot.keys[0][0, :, 0].numel() / WIDEST_GROUP)
    ends = [first + round(layers * group / groups) for group in range(groups + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


def _read(backbone: Backbone, example: Example, first: int, generator: torch.Generator) -> tuple[KV, Tensor, KV]:
    """The un-rotated slots of an example's text, what layer ``first`` is given, and the slots' gradients."""
    with torch.no_grad():
        opening = backbone.prefill(example.opening[None]) if len(example.opening) else None
        start = len(example.opening)
        with input_of(backbone, first) as taken:
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
    return backbone.rotate(kv, steps), taken[0][0], turned


def _explain(telling: Sequence[Float[Tensor, "_ I"]], costs: Sequence[Float[Tensor, " _"]]) -> Float[Tensor, " I"]:
    """What tells a token's share of its text's costs, in doublings: the linear map of the greatest likelihood.

    Costs are of single predictions, so they scatter about their mean as squares do: the divergence of a gamma
    distribution, which is convex, is made least.
    """
    x = torch.cat(list(telling))
    shares = torch.cat([each / each.mean().clamp(min=torch.finfo(torch.float32).tiny) for each in costs])
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    penalty = _PENALTY * x.pow(2).mean(0)
    found = torch.zeros(x.shape[1], requires_grad=True)
    steps = torch.optim.LBFGS([found], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def divergence() -> Tensor:
        steps.zero_grad()
        logarithm = (x @ found).clamp(-_MOST, _MOST)
        loss: Tensor = (shares * (-logarithm).exp() + logarithm).mean() + (penalty * found.pow(2)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        steps.step(divergence)  # type: ignore[no-untyped-call]
    return found.detach()[:-1] / math.log(2)


def _roots(squares: Float[Tensor, "heads W W"]) -> Float[Tensor, "heads W W"]:
    """The symmetric square roots of matrices, no direction of which is taken for free."""
    values, vectors = torch.linalg.eigh(squares)
    most = values.amax()
    values = torch.maximum(values.clamp(min=most * 1e-9), values.amax(-1, keepdim=True) * _FLAT)
    roots: Tensor = (vectors * values.sqrt()[:, None]) @ vectors.mT
    return roots


def _both_sides(square: Float[Tensor, "N N"], weights: Float[Tensor, "heads W W"]) -> Float[Tensor, "N N"]:
    once = by_head(square, weights)
    twice = by_head(once.T.contiguous(), weights)
    return (twice + twice.T) / 2
