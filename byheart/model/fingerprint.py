"""Names for models and learned parts, by which a state finds what it belongs to.

A name covers every value of every tensor, and what else decides what the model computes. It is ``A`` where all values
fit bfloat16, else ``A.B``: A names the values rounded to bfloat16, which are the same in any precision above it, and B
names what rounding takes away. Older files hold names over evenly spaced samples (``sample_fingerprint``).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from transformers import PreTrainedModel

from byheart.model.folder import weight_files
from byheart.model.offload import offloaded, present

_AT_ONCE = 1 << 19
# Of a config: its names and versions, how weights are stored and made, how a model is trained, and what generation
# asks for. None of it changes the logits of a token.
_INCIDENTAL = {
    "architectures",
    "auto_mapping",
    "dtype",
    "inference_mode",
    "initializer_range",
    "peft_version",
    "pretraining_tp",
    "quantization_config",
    "revision",
    "task_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
# The token that memories may begin with; the other tokens that a config names are for generation.
_FIRST = "bos_token_id"
_INCIDENTAL_ENDS = ("_token_id", "dropout", "_pdrop", "_name_or_path")


def fingerprint(tensors: Mapping[str, Tensor], function: str = "") -> str:
    """A name for tensors: 32 hexadecimal digits, and 16 more after a point where some value does not fit bfloat16.

    Args:
        function: what decides what they compute, beside their values.
    """
    return _name({name: tensor.shape for name, tensor in tensors.items()}, _hash_all(tensors), function)


def _hash_all(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    # The largest first, so that no thread is left alone with it at the end.
    distinct = {_place(tensor): tensor for tensor in sorted(tensors.values(), key=Tensor.numel, reverse=True)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # In a forked process PyTorch makes its own threads anew, which two threads must not begin together.
        pool.submit(torch.get_num_threads).result()
        hashes = dict(zip(distinct, pool.map(_hash_values, distinct.values()), strict=True))
    return {name: hashes[_place(tensor)] for name, tensor in tensors.items()}


def _name(shapes: Mapping[str, torch.Size], hashes: Mapping[str, tuple[str, str]], function: str) -> str:
    rounded, remainder = hashlib.sha256(function.encode()), hashlib.sha256()
    fits = True
    for name, shape in sorted(shapes.items()):
        high, low = hashes[name]
        rounded.update(f"{name}{tuple(shape)}{high}\n".encode())
        remainder.update(f"{name}{low}\n".encode())
        fits = fits and not low
    return rounded.hexdigest()[:32] + ("" if fits else f".{remainder.hexdigest()[:16]}")


def fingerprint_model(model: PreTrainedModel) -> str:
    """The name of a model: its weights, and the settings that decide what they compute."""
    weights = model.state_dict()
    hashes = _hash_all({name: tensor for name, tensor in weights.items() if not tensor.is_meta})
    for path, module in offloaded(model):
        with present(module):
            hashes |= _hash_all({f"{path}.{name}": tensor for name, tensor in module.named_parameters(recurse=False)})
    function = json.dumps(_function(model), sort_keys=True, default=_as_json)
    return _name({name: tensor.shape for name, tensor in weights.items()}, hashes, function)


def without_remainder(name: str) -> str:
    """The part of a fingerprint that is the same in any precision that holds bfloat16."""
    return name.partition(".")[0]


def sample_fingerprint(tensors: Mapping[str, Tensor], dtype: torch.dtype, *, samples: int) -> str:
    """A name by shapes and evenly spaced values of every tensor, rounded to ``dtype``; byheart 0.2 wrote these.

    Empty for weights that are not in memory, which it could not open.
    """
    if any(tensor.is_meta for tensor in tensors.values()):
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // samples)][:samples].to("cpu", dtype).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(memoryview(as_bytes(some)))
    return digest.hexdigest()[:32]


def describe_files(model: PreTrainedModel) -> str:
    """What tells whether the files that a model was opened from are those of another time; empty where none tell.

    Names, sizes, times and places of its weights and settings, the precision it is in, and the library that reads it.
    """
    # An adapter's files are not in the folder that its model names.
    folder = None if hasattr(model, "peft_config") else _folder_of(model)
    files = [*sorted(folder.glob("*.json")), *weight_files(folder)] if folder else []
    stats = [(path.name, path.stat()) for path in files]
    found = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats]
    settings = getattr(model.config, "quantization_config", None)
    return repr((str(folder), found, model.dtype, str(settings), transformers.__version__)) if found else ""


def as_bytes(tensor: Tensor) -> Any:
    """A CPU tensor's bytes as a buffer, without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor is: tied weights are hashed once."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _hash_values(tensor: Tensor) -> tuple[str, str]:
    """Hashes of the values rounded to bfloat16, and of those that are not exact there; empty where all are."""
    rounded, remainder = hashlib.sha256(), hashlib.sha256()
    fits = True
    for start, values in enumerate(torch.split(tensor.detach().reshape(-1), _AT_ONCE)):
        values = values.cpu()
        if values.is_floating_point() and values.dtype != torch.bfloat16:
            exact, values = values, values.bfloat16()
            if not torch.equal(values.to(exact.dtype), exact):
                fits = False
                remainder.update(f"{start}:".encode())
                remainder.update(memoryview(as_bytes(exact.float())))
        rounded.update(memoryview(as_bytes(values)))
    return rounded.hexdigest(), "" if fits else remainder.hexdigest()


def _function(model: PreTrainedModel) -> dict[str, Any]:
    """The settings that decide what a model's weights compute, and those of the adapters in it."""
    function = {"model_type": model.config.model_type, **_unusual(model.config)}
    # Models with an adapter of PEFT have it; the scale of an update is nowhere else.
    adapters = getattr(model, "peft_config", {})
    found = {name: {"kind": type(config).__name__, **_unusual(config)} for name, config in adapters.items()}
    return {**function, "adapters": found} if found else function


def _unusual(config: Any) -> dict[str, Any]:
    """The settings that are not their kind's defaults, without those that change no logits."""
    usual: dict[str, Any] = type(config)().to_dict()
    missing = object()
    return _essential({name: value for name, value in config.to_dict().items() if usual.get(name, missing) != value})


def _as_json(value: object) -> Any:
    return sorted(map(str, value)) if isinstance(value, set) else str(value)


def _essential(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _essential(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name == _FIRST
        or (name not in _INCIDENTAL and not str(name).startswith("_") and not str(name).endswith(_INCIDENTAL_ENDS))
    }


def _folder_of(model: PreTrainedModel) -> Path | None:
    """Where a model's files are: the folder it was opened from, or its snapshot in the cache of the hub."""
    name = str(model.name_or_path)
    if Path(name).is_dir():
        return Path(name).resolve()
    # transformers keeps which commit of the hub it has read.
    commit = getattr(model.config, "_commit_hash", None)
    found = try_to_load_from_cache(name, "config.json", revision=commit) if commit else None
    return Path(found).parent if isinstance(found, str) else None
