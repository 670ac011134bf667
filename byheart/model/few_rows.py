"""Linear layers of a few rows, multiplied the other way round where that is faster.

``nn.Linear`` makes the weights the second matrix of its product, and MKL packs the second matrix anew in each call.
Many rows pay that back; the few of a step do not: in float32, four rows take as long as twenty. Weights that are the
first matrix are read where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    def _layers(self) -> list[tuple[nn.Linear, Callable[..., Tensor]]]:
        """Linear layers with their other way, the same object each time, since compilers look whether it is.

        Not those of other classes, such as layers of 4 bits: they multiply in their own way.
        """
        layers = [module for module in self._model.modules() if type(module) is nn.Linear]
        return [(layer, partial(_forward, layer)) for layer in layers]

    @contextmanager
    def fast(self, x: Float[Tensor, "... D"]) -> Iterator[None]:
        """Before: layers as they are. Inside: they multiply the rows of ``x`` the faster way. After: as before."""
        changed: list[nn.Linear] = []
        try:
            for layer, forward in self._layers if _are_few(x) else ():
                if "forward" not in vars(layer) and _is_plain(layer.weight):
                    changed.append(layer)
                    vars(layer)["forward"] = forward
            yield
        finally:
            for layer in changed:
                vars(layer).pop("forward", None)


def _are_few(x: Tensor) -> bool:
    """Whether ``x`` has few rows, and is of the kind for which weights first were measured to be faster."""
    few = _FEWEST <= x.shape[:-1].numel() <= _MOST and not torch.is_grad_enabled()
    return few and x.device.type == "cpu" and x.dtype == torch.float32 and _has_mkl()


def _is_plain(weight: Tensor) -> bool:
    """Whether a weight is numbers in float32, and not of a class that packs them, as torchao's are."""
    return type(weight) in (nn.Parameter, Tensor) and weight.device.type == "cpu" and weight.dtype == torch.float32


def _has_mkl() -> bool:
    return bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


def _forward(layer: nn.Linear, input: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
    """What the layer computes, with its weights as the first matrix."""
    columns = input.reshape(-1, input.shape[-1]).T
    if layer.bias is None:
        out = torch.mm(layer.weight, columns)
    else:
        out = torch.addmm(layer.bias[:, None], layer.weight, columns)
    return out.T.contiguous().view(*input.shape[:-1], layer.out_features)
