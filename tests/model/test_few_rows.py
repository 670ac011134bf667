"""Linear layers of a few rows: the same numbers, and no trace on the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from byheart.model.few_rows import Products


class Doubled(nn.Linear):
    """A layer that computes in its own way."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def _layers(kind: type[nn.Linear] = nn.Linear, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(kind(24, 40, bias=bias), nn.SiLU(), kind(40, 16, bias=bias)).requires_grad_(False)


def _calls_of_linear(layers: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """What the layers give inside of ``fast``, and how often torch's own product of linear layers was called."""
    with torch.inference_mode(), Products(layers).fast(x), torch.profiler.profile() as profile:
        out = layers(x)
    return out, sum(event.count for event in profile.key_averages() if event.key == "aten::linear")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 24), (8, 1, 24), (2, 8, 24), (64, 24)])
def test_few_rows_give_the_same_numbers(shape: tuple[int, ...], bias: bool) -> None:
    layers, x = _layers(bias=bias), torch.randn(shape)
    out, calls = _calls_of_linear(layers, x)
    torch.testing.assert_close(out, layers(x))
    assert out.is_contiguous()
    assert calls == (0 if torch.backends.mkl.is_available() else 2)


@pytest.mark.parametrize("x", [torch.randn(1, 24), torch.randn(65, 24), torch.randn(0, 24), torch.randn(2, 0, 24)])
def test_other_numbers_of_rows_go_through_the_layers_as_they_are(x: Tensor) -> None:
    out, calls = _calls_of_linear(layers := _layers(), x)
    assert calls == 2
    assert torch.equal(out, layers(x))


def test_other_types_go_through_the_layers_as_they_are() -> None:
    layers, x = _layers().to(torch.bfloat16), torch.randn(4, 24, dtype=torch.bfloat16)
    assert _calls_of_linear(layers, x)[1] == 2


def test_an_input_of_one_row_inside_is_taken_too() -> None:
    layers = _layers()
    with torch.inference_mode(), Products(layers).fast(torch.randn(4, 24)):
        out = layers(row := torch.randn(24))
    torch.testing.assert_close(out, layers(row))


def test_layers_of_other_classes_compute_in_their_own_way() -> None:
    layers, x = _layers(Doubled), torch.randn(4, 24)
    with torch.inference_mode(), Products(layers).fast(x):
        inside = layers(x)
    assert torch.equal(inside, layers(x))


class Packed(Tensor):
    """Weights of a class that packs them, as torchao's: the layer is a plain one, and knows but its own product."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.mm, torch.addmm):
            raise NotImplementedError(f"packed weights have no {function.__name__}")
        return super().__torch_function__(function, types, args, kwargs or {})


def test_weights_that_are_packed_are_multiplied_in_their_own_way() -> None:
    layers, x = _layers(), torch.randn(4, 24)
    expected = layers(x)
    for layer in (layers[0], layers[2]):
        weight = layer.weight.data.as_subclass(Packed)
        del layer.weight
        layer.weight = weight
    with torch.inference_mode(), Products(layers).fast(x):
        assert torch.equal(layers(x).as_subclass(Tensor), expected)


@pytest.mark.parametrize("shape", [(0, 24), (2, 0, 24)])
def test_an_empty_input_inside_is_taken_too(shape: tuple[int, ...]) -> None:
    """An expert to which no token goes."""
    layers = _layers()
    with torch.inference_mode(), Products(layers).fast(torch.randn(4, 24)):
        assert layers[0](input=torch.randn(shape)).shape == (*shape[:-1], 40)


def test_the_other_way_is_one_object_so_that_compilers_know_it_again() -> None:
    products, x = Products(layers := _layers()), torch.randn(4, 24)
    seen = []
    for _ in range(2):
        with torch.inference_mode(), products.fast(x):
            seen.append([vars(layer).get("forward") for layer in (layers[0], layers[2])])
    assert all(ours is theirs for ours, theirs in zip(*seen, strict=True))


def test_an_interrupt_on_the_way_in_leaves_nothing_behind() -> None:
    class Interrupting(nn.Linear):
        @property
        def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
            raise KeyboardInterrupt

    layers, x = _layers(), torch.randn(4, 24)
    products = Products(layers)
    with torch.inference_mode():
        with products.fast(x):
            pass
        # The second layer is interrupted.
        layers[2].__class__ = Interrupting
        with pytest.raises(KeyboardInterrupt), products.fast(x):
            pass
    assert "forward" not in vars(layers[0])


def test_a_layer_whose_forward_somebody_else_has_changed_is_left_alone() -> None:
    layers = _layers()
    layers[0].forward = lambda x: torch.zeros(*x.shape[:-1], 40)
    with torch.inference_mode(), Products(layers).fast(x := torch.randn(4, 24)):
        assert torch.equal(layers[0](x), torch.zeros(4, 40))
    assert torch.equal(layers[0](x), torch.zeros(4, 40))


def test_with_gradients_layers_are_as_they_are() -> None:
    x = torch.randn(4, 24, requires_grad=True)
    with Products(layers := _layers()).fast(x):
        assert not any("forward" in vars(layer) for layer in layers)


def test_nothing_is_left_behind_also_after_an_error() -> None:
    layers = _layers()
    with torch.inference_mode(), pytest.raises(RuntimeError), Products(layers).fast(torch.randn(4, 24)):
        layers(torch.randn(4, 7))
    assert not any("forward" in vars(layer) for layer in layers)


def test_one_inside_another_leaves_nothing_behind() -> None:
    layers, x = _layers(), torch.randn(4, 24)
    products = Products(layers)
    with torch.inference_mode(), products.fast(x):
        with products.fast(x):
            inner = layers(x)
        torch.testing.assert_close(inner, layers(x))
    assert not any("forward" in vars(layer) for layer in layers)


def test_hooks_of_layers_are_called() -> None:
    layers, x, seen = _layers(), torch.randn(4, 24), []
    handle = layers[0].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with torch.inference_mode(), Products(layers).fast(x):
        layers(x)
    handle.remove()
    assert seen == [torch.Size((4, 40))]
