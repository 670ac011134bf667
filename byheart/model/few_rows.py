"""Linear layers of a few rows, multiplied the other way round where that is faster.

``nn.Linear`` makes the weights the second matrix of its product, and MKL packs the second matrix anew in each call.
Many rows pay that back; the few of a step do not: in float32, four rows take as long as twenty. Weights that are the
first matrix are read where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

# One row is a product with a vector, which nothing makes faster; from about a hundred on, packing pays.
_FEWEST, _MOST = 2, 64


class Products:
    """How the linear layers of a model multiply: as they are, or for few rows with the weights first."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @cached_property
    def _layers(self) -> list[nn.Linear]:
        # Not those of other classes, such as layers of 4 bits: they multiply in their own way.
        return [module for module in self._model.modules() if type(module) is nn.Linear]

    @contextmanager
    def fast(self, x: Float[Tensor, "... D"]) -> Iterator[None]:
        """Before: layers as they are. Inside: they multiply the rows of ``x`` the faster way. After: as before."""
        changed = [layer for layer in self._layers if "forward" not in vars(layer)] if _are_few(x) else []
        for layer in changed:
            vars(layer)["forward"] = partial(_forward, layer)
        try:
            yield
        finally:
            for layer in changed:
                vars(layer).pop("forward", None)


def _are_few(x: Tensor) -> bool:
    """Whether ``x`` has few rows, and is of the kind for which weights first were measured to be faster."""
    few = _FEWEST <= x.shape[:-1].numel() <= _MOST and not torch.is_grad_enabled()
    return few and is_multiplied_by_mkl(x)


def is_multiplied_by_mkl(x: Tensor) -> bool:
    """Whether MKL makes the products of ``x``, in float32."""
    has_mkl = bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
    return has_mkl and x.device.type == "cpu" and x.dtype == torch.float32


def _forward(layer: nn.Linear, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
    """What the layer computes, with its weights as the first matrix."""
    columns = x.reshape(-1, x.shape[-1]).T
    if layer.bias is None:
        out = torch.mm(layer.weight, columns)
    else:
        out = torch.addmm(layer.bias[:, None], layer.weight, columns)
    return out.T.contiguous().view(*x.shape[:-1], -1)
