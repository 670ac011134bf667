"""A method's learned parts on disk.

    FOLDER/method.json           the method's name, its options, the fingerprint of its backbone, and the prompt format
                                 that it was trained with, where it has its own
    FOLDER/method.safetensors    its parameters and buffers

byheart 0.1 called the two `memory.json` and `memory.safetensors`; such folders open too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shorten
from typing import Annotated, Any, Literal

import torch
from pydantic import AliasChoices, Field, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save as serialize
from torch import Tensor

from byheart.errors import CheckpointError, StateMismatchError
from byheart.files import read_json, replacing, require_regular, root, sweep
from byheart.protocol import format_1
from byheart.protocol.method import Method
from byheart.protocol.settings import Settings, parse

CARD, WEIGHTS = "method.json", "method.safetensors"
_OLD_CARD, _OLD_WEIGHTS = "memory.json", "memory.safetensors"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Of numbers that are learned; one that is quantised says nothing of its scales."""
_BOUND = 1 << 63
DTYPE_NAMES = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)


class _Card(Settings):
    """What a folder of learned parts says of itself."""

    # byheart 0.1 says mechanism.
    method: str = Field(pattern=r"^[\w.-]{1,100}$", validation_alias=AliasChoices("method", "mechanism"))
    options: dict[Annotated[str, Field(pattern=r"^\w{1,100}$")], Any]
    backbone: str = Field(pattern=r"^[\w.:+/-]{1,200}$")
    prompt_format: dict[Literal["opening", "before", "answer"], Annotated[str, Field(max_length=4096)]] = Field(
        default_factory=dict
    )

    @field_validator("options")
    @classmethod
    def _has_usable_numbers(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Refuse numbers that PyTorch does not have, at any depth; NaN is within no bounds."""
        left: list[Any] = [options]
        while left:
            value = left.pop()
            if isinstance(value, dict | list):
                left += value.values() if isinstance(value, dict) else value
            elif isinstance(value, int | float) and not -_BOUND <= value < _BOUND:
                raise ValueError(f"{shorten(value)} is too large")
        return options


def is_learned(name: str) -> bool:
    """Whether ``name`` is a folder that ``save_pretrained`` wrote, or is written as a path."""
    return os.sep in name or any(os.path.isfile(os.path.join(name, card)) for card in (CARD, _OLD_CARD))


def read_card(folder: str | Path) -> dict[str, Any]:
    """The method, options and backbone of a folder that ``save_pretrained`` wrote. Raises CheckpointError."""
    is_old = _is_old(Path(folder))
    path = Path(folder) / (_OLD_CARD if is_old else CARD)
    try:
        card = parse(_Card, read_json(path, inside=root(path.parent))).model_dump(exclude_unset=True)
    except (OSError, ValueError) as error:
        is_peft = (Path(folder) / "adapter_config.json").exists() and not path.exists()
        advice = f" It is PEFT's: byheart import peft {folder} NEW_FOLDER --base MODEL" if is_peft else ""
        raise CheckpointError(
            f"'{folder}' holds no trained method: {path.name} cannot be read ({error}).{advice}"
        ) from error
    return format_1.rename(card) if is_old else card


def _is_old(folder: Path) -> bool:
    """Whether byheart 0.1 wrote this folder, and no later version has."""
    return not (folder / CARD).exists() and (folder / _OLD_CARD).exists()


def save_pretrained(method: Method, folder: str | Path) -> None:
    """Write the learned parts of ``method``, and its options, into ``folder``; each file whole or not at all."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    card = {"method": method.name, "options": method.options(), "backbone": method.backbone.fingerprint}
    card |= {"prompt_format": dict(method.prompt_format)} if method.prompt_format else {}
    sweep(path / WEIGHTS)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}
    with replacing(path / WEIGHTS) as weights:
        weights.write_bytes(serialize(tensors))
    with replacing(path / CARD) as written:
        written.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load_pretrained(method: Method, folder: str | Path) -> None:
    """Read into ``method`` what ``save_pretrained`` wrote. Raises StateMismatchError or CheckpointError."""
    card = read_card(folder)
    if card["method"] != method.name or not method.backbone.is_called(card["backbone"]):
        raise StateMismatchError(
            f"'{folder}' holds learned parts of {card['method']} for backbone {card['backbone']}; "
            f"this is {method.name} on backbone {method.backbone.fingerprint}."
        )
    path = Path(folder) / (_OLD_WEIGHTS if _is_old(Path(folder)) else WEIGHTS)
    try:
        stored = load_file(require_regular(path, inside=root(path.parent)), device=str(method.backbone.device))
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"'{folder}': {path.name} cannot be read ({error}).") from error
    _require_fit(folder, stored, method)
    for name in method.optional.keys() & stored.keys():
        owner, _, leaf = name.rpartition(".")
        # A copy: what was read stays mapped to the file.
        setattr(method.get_submodule(owner), leaf, stored[name].clone())
    method.load_state_dict(stored)
    method.prompt_format = card.get("prompt_format", {})


def _require_fit(folder: str | Path, stored: Mapping[str, Tensor], method: Method) -> None:
    """Raise CheckpointError listing tensors that a method lacks, has no place for, or cannot use."""
    own = method.state_dict()
    optional = {name: shape for name, shape in method.optional.items() if name in stored}
    expected = {**{name: tuple(tensor.shape) for name, tensor in own.items()}, **optional}
    missing, unexpected = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    known = {name: stored[name] for name in sorted(expected.keys() & stored.keys())}
    misshapen = [name for name, tensor in known.items() if expected[name] != tensor.shape]
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"'{folder}' does not fit: missing {shorten(missing)}, unexpected {shorten(unexpected)}, "
            f"of another shape {shorten(misshapen)}."
        )
    odd = [name for name, tensor in known.items() if not _is_usable(tensor, own.get(name))]
    if odd:
        raise CheckpointError(
            f"'{folder}' cannot be used: {shorten(odd)} holds NaN, infinite numbers, or others than {DTYPE_NAMES}."
        )


def _is_usable(tensor: Tensor, own: Tensor | None) -> bool:
    """Whether a tensor holds finite numbers; or, where the method's ``own`` holds no learned ones, the same kind."""
    if own is not None and not own.is_floating_point():
        return tensor.dtype == own.dtype
    return tensor.dtype in DTYPES and is_finite(tensor.float())


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; it takes no memory of the tensor's size."""
    # The least and the greatest are NaN where any number is.
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())
