"""Models larger than the device that runs them: layers wait in the machine's memory or on disk until they are called.

accelerate brings a layer's weights when it is called and drops them after it. All else stays on the device: hidden
states, keys and values, and the weights that methods read themselves, which are those of the embedding, the head and,
as far as they fit, the last layers. So nothing beside this module and ``fingerprint`` knows of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

OFFLOAD = "offload"
"""The name of this among devices."""
_SHARE = 0.8


def place_layers(
    model: nn.Module, device: torch.device, *, dtype: torch.dtype, free: Mapping[int | str, int] | None = None
) -> dict[str, str]:
    """Which part of a model is where: on ``device``, on ``cpu`` or on ``disk``, as transformers takes it.

    The last layers are on the device as far as four fifths of its free memory go, after all that is no layer; those
    before them in the machine's memory, and the first ones on disk where that is full too.

    Args:
        model: without weights, as on the device ``meta``.
        free: bytes that are free, by a GPU's number and ``cpu``; measured without it.
    """
    free = free or importlib.import_module("accelerate.utils").get_max_memory()
    here = device.index or 0 if device.type == "cuda" else "cpu"
    room = {place: int(_SHARE * free.get(place, 0)) for place in dict.fromkeys((here, "cpu"))}
    names = {here: str(device), "cpu": "cpu"}
    layers, placed = _find_layers(model), {}
    for name, part in _parts(model, layers):
        placed[name] = str(device)
        room[here] -= _bytes(part, dtype)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    for index in reversed(range(len(layers))):
        size = _bytes(layers[index], dtype)
        # A place that was full once has no smaller layer of earlier ones: order is kept.
        room = {place: left for place, left in room.items() if left >= size}
        place = next(iter(room), None)
        placed[f"{prefix}.{index}"] = "disk" if place is None else names[place]
        if place is not None:
            room[place] -= size
    return placed


def offloaded(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules, with their names, whose own weights are not in memory."""
    for name, module in model.named_modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            yield name, module


def present(module: nn.Module) -> Any:
    """Inside: the weights of an offloaded module are in memory. After: they are not."""
    return importlib.import_module("accelerate.utils").align_module_device(module, execution_device="cpu")


def _find_layers(model: nn.Module) -> nn.ModuleList:
    return max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)


def _parts(module: nn.Module, layers: nn.ModuleList, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All that is no layer, in as few parts as can be."""
    for name, child in module.named_children():
        if child is not layers:
            inside = any(part is layers for part in child.modules())
            yield from _parts(child, layers, f"{prefix}{name}.") if inside else [(f"{prefix}{name}", child)]


def _bytes(module: nn.Module, dtype: torch.dtype) -> int:
    return sum(parameter.numel() * dtype.itemsize for parameter in module.parameters())
