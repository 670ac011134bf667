"""Slots as numbers of which most are near zero: predicted, weighed, and turned to principal components.

    x  the keys and the values of one token in a group of layers, all layers and heads in one vector, un-rotated
    f  what the first of the coded layers is given, scaled to unit size: the layers below are run again
    w  weights, one symmetric matrix per head: what an error in x costs those who read it
    y  components: y basis = (x - center - f prediction) w, in the sense of least squares

Keys and values of one token have much in common across layers, and most of what upper layers make is known from what
they are given. What is left has few large components (KVTC, Staniszewski and Łańcucki 2025, arXiv 2511.01815, section
3: principal components over all layers; the prediction and the weights are byheart's own).

Dimensions: T tokens, L layers of the group, H heads, W head width, N = 2 L H W numbers, F features, C components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.model.precision import fast_dtype
from byheart.protocol.codec.levels import UNITS

# Slots have no more digits than bfloat16, but not every processor has fast products for it.
_DTYPE = fast_dtype(torch.device("cpu"))
EXPLAINING = 256
"""How many components tell how much depends on a token."""


@dataclass(frozen=True)
class Transform:
    """Keys and values of a group of layers, to components and back.

    ``widths`` are the components' spreads, ``levels.UNITS`` per doubling, in whole numbers so that every machine codes
    alike. ``basis`` and ``prediction`` are int8, each row of the one and column of the other with a scale.
    ``importance`` is what features, then the first components, say about how much depends on a token, in doublings.
    """

    center: Float[Tensor, " N"]
    weights: Float[Tensor, "heads W W"]
    basis: Int[Tensor, "C N"]
    basis_scale: Float[Tensor, " C"]
    prediction: Int[Tensor, "F N"]
    prediction_scale: Float[Tensor, " N"]
    widths: Int[Tensor, " C"]
    importance: Float[Tensor, " I"]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Transform:
        """From tensors by the names of its fields."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names of its fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def forward(self, x: Float[Tensor, "T N"], features: Float[Tensor, "T F"]) -> Float[Tensor, "T C"]:
        """The components of slots."""
        known = torch.addmm(self.center.to(_DTYPE), features.to(_DTYPE), self._prediction)
        return (x.to(_DTYPE) - known) @ self._analysis

    def back(self, y: Float[Tensor, "T C"], features: Float[Tensor, "T F"]) -> Float[Tensor, "T N"]:
        """The slots that have these components; the last of them may be left out."""
        known = torch.cat([features.to(_DTYPE), y.to(_DTYPE)], dim=1)
        return torch.addmm(self.center.to(_DTYPE), known, self._synthesis[: known.shape[1]])

    def cost(self, gradients: Float[Tensor, "T N"]) -> Float[Tensor, " T"]:
        """What an error of unit size in each component costs, added up, by the gradients of a prediction."""
        return (gradients @ by_head(self._rows, torch.linalg.inv(self.weights)).T).pow(2).sum(1)

    def importance_of(self, y: Float[Tensor, "T C"], features: Float[Tensor, "T F"]) -> Float[Tensor, " T"]:
        """How many doublings an error in each token costs more than in another, as far as they tell."""
        return explaining(y, self.widths, features) @ self.importance

    def require_fit(self, *, heads: int, width: int, features: int) -> None:
        """Raise ValueError unless its tensors have these sizes, with finite numbers."""
        numbers, components = heads * width, len(self.widths)
        shapes = {
            "center": (numbers,),
            "weights": (heads, width, width),
            "basis": (components, numbers),
            "basis_scale": (components,),
            "prediction": (features, numbers),
            "prediction_scale": (numbers,),
            "widths": (components,),
            "importance": (features + min(components, EXPLAINING),),
        }
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != shapes[name]:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, and must have {shapes[name]}")
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} holds what is no finite number")
        if bool((self.widths.diff() > 0).any()):
            raise ValueError("its components are not in the order of their widths")

    @cached_property
    def _synthesis(self) -> Float[Tensor, "FC N"]:
        """From features, then components with their weights taken off, to slots: one product, rounded once."""
        return torch.cat([self._prediction, by_head(self._rows, torch.linalg.inv(self.weights)).to(_DTYPE)])

    @cached_property
    def _prediction(self) -> Float[Tensor, "F N"]:
        return (self.prediction.float() * self.prediction_scale).to(_DTYPE)

    @cached_property
    def _analysis(self) -> Float[Tensor, "N C"]:
        """From slots to components, by least squares: rounding has left the basis not quite orthonormal."""
        solved = torch.cholesky_solve(self._rows, torch.linalg.cholesky(self._rows @ self._rows.T))
        return by_head(solved, self.weights).T.to(_DTYPE).contiguous()

    @property
    def _rows(self) -> Float[Tensor, "C N"]:
        return self.basis.float() * self.basis_scale[:, None]


def features_of(hidden: Float[Tensor, "T D"]) -> Float[Tensor, "T F"]:
    """What is known of each token, of unit size: a few tokens have hidden states a hundred times as large."""
    known = hidden.float().cpu()
    return known / known.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(torch.float32).tiny)


def explaining(
    y: Float[Tensor, "T C"], widths: Int[Tensor, " C"], features: Float[Tensor, "T F"]
) -> Float[Tensor, "T I"]:
    """What tells a token's importance: its features, and its first components as parts of their spread."""
    first = widths[:EXPLAINING]
    return torch.cat([features, y[:, : len(first)].float() / torch.exp2(first / UNITS)], dim=1)


def by_head(x: Float[Tensor, "T N"], weights: Float[Tensor, "heads W W"]) -> Float[Tensor, "T N"]:
    """Each head's numbers by its own matrix."""
    heads, width, _ = weights.shape
    return torch.bmm(x.view(-1, heads, width).transpose(0, 1), weights).transpose(0, 1).reshape(len(x), -1)


def to_int8(rows: Float[Tensor, "C X"]) -> tuple[Int[Tensor, "C X"], Float[Tensor, " C"]]:
    """Rows in int8, each with its scale."""
    scale = (rows.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows / scale[:, None]).round().to(torch.int8), scale
