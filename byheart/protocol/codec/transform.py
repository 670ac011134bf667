"""Slots as numbers of which most are near zero: weighed, predicted from the tokens, and turned to principal components.

    x  the keys or the values of one token in a group of layers, all layers and heads in one vector, un-rotated
    w  weights, one symmetric matrix per head: what an error in x costs those who read it
    f  what the token itself and the one before it say, by their embeddings
    y  components: (x - center - f prediction) w = y basis, in the sense of least squares

Keys and values of one token have much in common across layers, and half of their energy is known from which token it is
and which came before it. What is left has few large components (KVTC, Staniszewski and Łańcucki 2025, arXiv
2511.01815, section 3: principal components over all layers; the prediction is byheart's own).

Dimensions: T tokens, L layers of the group, H heads, W head width, N = L H W numbers, F features, C components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Transform:
    """Keys or values of a group of layers, to components and back.

    ``widths`` are the components' spreads, ``levels.UNITS`` per doubling, in whole numbers so that every machine codes
    alike. ``basis`` and ``prediction`` are int8, each row of the one and column of the other with a scale.
    """

    center: Float[Tensor, " N"]
    weights: Float[Tensor, "LH W W"]
    basis: Int[Tensor, "C N"]
    basis_scale: Float[Tensor, " C"]
    prediction: Int[Tensor, "F N"]
    prediction_scale: Float[Tensor, " N"]
    widths: Int[Tensor, " C"]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Transform:
        """From tensors by the names of its fields."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names of its fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def forward(self, x: Float[Tensor, "T N"], features: Float[Tensor, "T F"]) -> Float[Tensor, "T C"]:
        """The components of slots."""
        left = _by_head(x.float() - self._known(features), self.weights)
        return (left.to(self.synthesis.dtype) @ self.analysis).float()

    def back(self, y: Float[Tensor, "T C"], features: Float[Tensor, "T F"]) -> Float[Tensor, "T N"]:
        """The slots that have these components."""
        left = (y.to(self.synthesis.dtype) @ self.synthesis).float()
        return _by_head(left, self._unweigh) + self._known(features)

    def _known(self, features: Float[Tensor, "T F"]) -> Float[Tensor, "T N"]:
        """What the tokens say of the slots."""
        return (features.to(self._predict.dtype) @ self._predict).float() + self.center

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
        }
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != shapes[name]:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, and must have {shapes[name]}")
            if not bool(torch.isfinite(tensor.float()).all()):
                raise ValueError(f"{name} holds what is no finite number")

    @cached_property
    def synthesis(self) -> Float[Tensor, "C N"]:
        """From components to weighed slots; in bfloat16, for which processors have fast products."""
        return (self.basis.float() * self.basis_scale[:, None]).to(torch.bfloat16)

    @cached_property
    def analysis(self) -> Float[Tensor, "N C"]:
        """From weighed slots to components, by least squares: rounding has left the basis not quite orthonormal."""
        rows = self.synthesis.float()
        solved: Tensor = torch.linalg.solve(rows @ rows.T, rows)
        return solved.T.to(torch.bfloat16).contiguous()

    @cached_property
    def _predict(self) -> Float[Tensor, "F N"]:
        return (self.prediction.float() * self.prediction_scale).to(torch.bfloat16)

    @cached_property
    def _unweigh(self) -> Float[Tensor, "LH W W"]:
        inverse: Tensor = torch.linalg.inv(self.weights)
        return inverse


def _by_head(x: Float[Tensor, "T N"], weights: Float[Tensor, "LH W W"]) -> Float[Tensor, "T N"]:
    """Each head's numbers by its own matrix."""
    heads, width, _ = weights.shape
    return torch.bmm(x.view(-1, heads, width).transpose(0, 1), weights).transpose(0, 1).reshape(len(x), -1)


def features_of(embeddings: Float[Tensor, "T D"]) -> Float[Tensor, "T F"]:
    """What is known of each token: its embedding and that of the one before it, zeros before the first."""
    return torch.cat([embeddings, torch.cat([torch.zeros_like(embeddings[:1]), embeddings[:-1]])], dim=1)


def to_int8(rows: Float[Tensor, "C X"]) -> tuple[Int[Tensor, "C X"], Float[Tensor, " C"]]:
    """Rows in int8, each with its scale."""
    scale = (rows.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows / scale[:, None]).round().to(torch.int8), scale
