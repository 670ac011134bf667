"""The files of a released checkpoint: its JSON settings, and its tensors shard by shard.

A shard's tensors are mapped from disk, so what is not used is not read, and a folder is walked in the memory of one
shard. No code in a file is ever run: safetensors, or a `.bin` through PyTorch's weights-only reader. This module does
not know whose checkpoint it reads.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from byheart.errors import CheckpointError

Shapes: TypeAlias = dict[str, tuple[int, ...]]
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_LISTED = 10


def settings(path: Path, needed: Iterable[str] = ()) -> dict[str, Any]:
    """A JSON file's object. Raises CheckpointError where it cannot be read or lacks a key of ``needed``."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}. Give the folder as it was released.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"'{path}' holds no JSON object. Give the folder as it was released.")
    require_keys(path, found, needed)
    return found


def require_keys(path: Path, found: Mapping[str, Any], needed: Iterable[str]) -> None:
    """Raise CheckpointError for settings of the format that ``found`` lacks."""
    absent = [key for key in needed if key not in found]
    if absent:
        raise CheckpointError(f"'{path}' lacks {', '.join(absent)}: it is not of this format.")


def shards(folder: Path) -> Iterator[dict[str, Tensor]]:
    """Each file's tensors by name, on the CPU; drop one before taking the next.

    Reads ``model.safetensors`` or ``pytorch_model.bin``, or the shards that an ``.index.json`` beside them names.
    Raises CheckpointError for a file that is absent or broken, and for a tensor that is not where the index says.
    """
    for path, names in _files(folder).items():
        tensors = _mapped(path)
        absent = [name for name in names or () if name not in tensors]
        if absent:
            raise CheckpointError(f"'{path}' lacks {_some(absent)}, which the index says it holds.")
        yield tensors


def _files(folder: Path) -> dict[Path, list[str] | None]:
    """File -> the tensors that the index puts there; None without an index."""
    for whole in _WHOLE:
        index = folder / f"{whole}.index.json"
        if index.exists():
            files: dict[Path, list[str] | None] = {}
            for name, file in settings(index, ["weight_map"])["weight_map"].items():
                files[folder / file] = [*(files.get(folder / file) or []), name]
            return files
        if (folder / whole).exists():
            return {folder / whole: None}
    raise CheckpointError(f"'{folder}' holds no weights: there is no {' or '.join(_WHOLE)}, whole or with an index.")


def _mapped(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Only files in PyTorch's newer, zipped format can be mapped.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"'{path}' cannot be read: {reason}. Download it again.") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise CheckpointError(f"'{path}' holds something other than named tensors.")
    return found


def shapes(folder: Path) -> Shapes:
    """Every tensor's shape, without reading the tensors."""
    return {name: tuple(tensor.shape) for shard in shards(folder) for name, tensor in shard.items()}


def require(where: Path, found: Shapes, expected: Shapes, *, ignored: Collection[str] = ()) -> None:
    """Raise CheckpointError listing tensors that are missing, unexpected or of the wrong shape.

    Args:
        ignored: ends of names that may be there; what they hold is not used.
    """
    unexpected = [name for name in found if name not in expected and not name.endswith(tuple(ignored))]
    wrong = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": unexpected,
        "wrong shape": wrong,
    }
    found_problems = [f"{problem}: {_some(names)}" for problem, names in problems.items() if names]
    if found_problems:
        raise CheckpointError(f"'{where}' does not fit its settings; {'; '.join(found_problems)}.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def low_rank_shapes(weights: Mapping[str, Tensor], rank: int, adapter: str = "") -> Shapes:
    """PEFT's names and shapes for updates of linear layers, given by module path; ``adapter`` where it is named."""
    end = f"{adapter}.weight" if adapter else "weight"
    pairs = {path: (weight.shape[0], weight.shape[1]) for path, weight in weights.items()}
    down = {f"{path}.lora_A.{end}": (rank, width) for path, (_, width) in pairs.items()}
    return {**down, **{f"{path}.lora_B.{end}": (height, rank) for path, (height, _) in pairs.items()}}
