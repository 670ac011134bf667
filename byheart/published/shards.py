"""The tensors of a released checkpoint, shard by shard.

A shard's tensors are mapped from disk, so what is not used is not read, and a folder is walked in the memory of one
shard. No code in a file is ever run: safetensors, or a `.bin` through PyTorch's weights-only reader. Files are regular
ones inside their folder, and tensors are plain ones that their file has the bytes for. This module does not know whose
checkpoint it reads.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from byheart.errors import CheckpointError
from byheart.files import require_regular, root
from byheart.protocol.checkpoint import DTYPE_NAMES, DTYPES, is_finite
from byheart.protocol.settings import Settings, read_settings

Shapes: TypeAlias = dict[str, tuple[int, ...]]
_WHOLE = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
_LISTED = 10


class _Index(Settings):
    """Which file holds which tensor; files stand beside the index."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^[\w.-]+\.(safetensors|bin)$")]] = Field(min_length=1)


def shards(folder: Path) -> Iterator[dict[str, Tensor]]:
    """Each file's tensors by name, on the CPU; drop one before taking the next.

    Reads ``model.safetensors`` or ``pytorch_model.bin``, or the shards that an ``.index.json`` beside them names.
    Raises CheckpointError for a file that is absent, broken or elsewhere, for a tensor that is not where the index
    says, is there twice, or is not plain.
    """
    seen: set[str] = set()
    for path, names in _files(folder).items():
        tensors = _mapped(path, folder)
        absent = [name for name in names if name not in tensors]
        if absent:
            raise CheckpointError(f"'{path}' lacks {_some(absent)}, which the index says it holds.")
        if twice := seen.intersection(tensors):
            raise CheckpointError(f"'{path}' holds tensors that another file holds too: {_some(sorted(twice))}.")
        seen.update(tensors)
        yield tensors


def size(folder: Path) -> int:
    """Bytes of a checkpoint's files of tensors. Raises CheckpointError."""
    try:
        return sum(require_regular(path, inside=root(folder)).stat().st_size for path in _files(folder))
    except OSError as error:
        raise CheckpointError(f"'{folder}' cannot be read: {error}. Download it again.") from error


def _files(folder: Path) -> dict[Path, list[str]]:
    """File -> the tensors that the index puts there; none without an index."""
    for whole in _WHOLE:
        index = folder / f"{whole}.index.json"
        if index.exists():
            files: dict[Path, list[str]] = {}
            for name, file in read_settings(index, _Index).weight_map.items():
                files.setdefault(folder / file, []).append(name)
            return files
        if (folder / whole).exists():
            return {folder / whole: []}
    raise CheckpointError(f"'{folder}' holds no weights: there is no {' or '.join(_WHOLE)}, whole or with an index.")


def _mapped(path: Path, folder: Path) -> dict[str, Tensor]:
    try:
        found = _load(require_regular(path, inside=root(folder)))
    # The readers raise whatever a broken file makes them stumble over: KeyError and IndexError for plain text.
    except Exception as error:
        raise CheckpointError(f"'{path}' cannot be read: {_reason(error)}. Download it again.") from error
    if not isinstance(found, dict) or not found or not all(_is_named(name, tensor) for name, tensor in found.items()):
        raise CheckpointError(f"'{path}' holds something other than named tensors.")
    odd = [name for name, tensor in found.items() if not _is_plain(tensor)]
    if odd:
        raise CheckpointError(
            f"'{path}' holds tensors that are sparse, quantised, repeated or without data: {_some(odd)}."
        )
    # Tied weights are the same tensor twice; others that share bytes are more than the file has.
    apart = {(tensor.data_ptr(), tensor.shape, tensor.stride()): tensor.nbytes for tensor in found.values()}
    if sum(apart.values()) > path.stat().st_size:
        raise CheckpointError(f"'{path}' holds tensors of more bytes than the file has; their views overlap.")
    return found


def _reason(error: Exception) -> str:
    """The first line of what a reader says, without what a terminal would act on."""
    if isinstance(error, pickle.UnpicklingError):
        # PyTorch's own words tell how to run the file's code.
        return "it is damaged, or holds something other than tensors"
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return "".join(letter for letter in line if letter.isprintable())[:300].rstrip(".")


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    # Only files in PyTorch's newer, zipped format can be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _is_named(name: object, tensor: object) -> bool:
    return isinstance(name, str) and isinstance(tensor, Tensor)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's numbers stand in memory, each in a place of its own."""
    dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized
    if not dense or tensor.device.type != "cpu" or type(tensor) not in (Tensor, nn.Parameter):
        return False
    return all(step or count <= 1 for step, count in zip(tensor.stride(), tensor.shape, strict=True))


def shapes(folder: Path) -> Shapes:
    """Every tensor's shape, without reading the tensors."""
    return {name: tuple(tensor.shape) for shard in shards(folder) for name, tensor in shard.items()}


@torch.no_grad()
def copy(where: Path, name: str, tensor: Tensor, target: Tensor) -> None:
    """Write a checkpoint's tensor into ``target``, which has its shape. Raises CheckpointError.

    Numbers of another kind than ``DTYPES``, and those that are not finite in ``target``, are refused.
    """
    if tensor.dtype not in DTYPES:
        raise CheckpointError(f"'{where}': {_some([name])} is {tensor.dtype}; byheart reads {DTYPE_NAMES}.")
    target.copy_(tensor)
    if not is_finite(target):
        raise CheckpointError(f"'{where}': {_some([name])} holds NaN or infinite numbers in {target.dtype}.")


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
    """Names from a file, the first of many, each in one printable line."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(repr(name[:200])[1:-1] for name in names[:_LISTED]) + more


def low_rank_shapes(weights: Mapping[str, Tensor], rank: int, adapter: str = "") -> Shapes:
    """PEFT's names and shapes for updates of linear layers, given by module path; ``adapter`` where it is named."""
    end = f"{adapter}.weight" if adapter else "weight"
    pairs = {path: (weight.shape[0], weight.shape[1]) for path, weight in weights.items()}
    down = {f"{path}.lora_A.{end}": (rank, width) for path, (_, width) in pairs.items()}
    return {**down, **{f"{path}.lora_B.{end}": (height, rank) for path, (height, _) in pairs.items()}}
