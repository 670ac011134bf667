"""What a linear layer's inputs have in common, as editors of knowledge need it: their second moments over much text.

For the matrix of a feed-forward block that writes to the stream, an input k is a key, and the moments, the mean of
k k^T, say which keys are in use: an edit that is small in them changes little else (ROME, Meng et al. 2022, arXiv
2202.05262, section 3.1; MEMIT, arXiv 2210.07229, section 4.2). They are a model's, not a method's: measured once.

    CACHE/key-moments/FINGERPRINT/PATH.safetensors    `moments` (in, in), float32

Dimensions: K width of the keys, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import save as serialize
from torch import Tensor

from byheart.errors import CheckpointError, UsageError
from byheart.files import cache_folder, replacing
from byheart.model.anatomy import hooked
from byheart.model.backbone import Backbone
from byheart.model.fingerprint import without_remainder
from byheart.model.linear import widths
from byheart.protocol.tensor_file import open_tensors

_NAME, _MODEL = "moments", "backbone"
# Of the middle one of the moments themselves: a few keys are so much larger than the others that a mean is theirs.
_RIDGE = 1e-4
KNOWN: dict[tuple[str, str], Tensor] = {}


def find(backbone: Backbone, path: str) -> Float[Tensor, "K K"] | None:
    """The moments of what the linear layer at ``path`` is given; None where they were not measured, or are damaged."""
    key = (without_remainder(backbone.fingerprint), path)
    if key not in KNOWN:
        found = _read(_file(*key), key[0], widths(backbone.linear(path))[0])
        if found is None:
            return None
        KNOWN[key] = found
    return KNOWN[key]


def require(backbone: Backbone, path: str) -> Float[Tensor, "K K"]:
    """The same. Raises UsageError where they were not measured."""
    found = find(backbone, path)
    if found is None:
        layer = path.removeprefix(f"{backbone.anatomy.stack}.").partition(".")[0]
        raise UsageError(
            f"What layer {layer}'s feed-forward values are given was not measured yet; do it once: "
            f"byheart calibrate {backbone.source or 'MODEL'} --layers {layer}"
        )
    return found


def keep(backbone: Backbone, moments: Mapping[str, Tensor]) -> Path:
    """Keep moments for this process and later ones; gives their folder. Raises CheckpointError."""
    name = without_remainder(backbone.fingerprint)
    for path, matrix in moments.items():
        KNOWN[name, path] = matrix
        try:
            with replacing(_file(name, path)) as scratch:
                scratch.write_bytes(serialize({_NAME: matrix}, metadata={_MODEL: name}))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"Moments could not be written to '{_file(name, path)}': {error}.") from error
    return _file(name, "").parent


@torch.no_grad()
def measure(
    backbone: Backbone,
    paths: Sequence[str],
    texts: Sequence[Int[Tensor, " _"]],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Float[Tensor, "_ _"]]:
    """The moments of what each linear layer is given over all tokens of ``texts``, each read by itself."""
    sums = {path: torch.zeros(2 * widths(backbone.linear(path))[:1]) for path in paths}

    def add(path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            keys = args[0].flatten(0, 1).float().cpu()
            sums[path].addmm_(keys.T, keys)

        return hook

    with hooked([backbone.linear(path).register_forward_pre_hook(add(path)) for path in paths]):
        for done, text in enumerate(texts, start=1):
            backbone.hidden(text[None].to(backbone.device))
            progress(done, len(texts))
    tokens = sum(map(len, texts))
    return {path: total / tokens for path, total in sums.items()}


def factor(moments: Float[Tensor, "K K"], scale: float = 1.0) -> Tensor:
    """The Cholesky factor (K, K), float64, of ``scale`` times the moments, for ``solve``.

    Where there were fewer tokens than a key is wide, no more is added than it takes.
    """
    matrix = moments.double() * scale
    ridge = _RIDGE * matrix.diagonal().median().clamp(min=torch.finfo(torch.float32).tiny)
    for _ in range(40):
        found: Tensor
        found, failed = torch.linalg.cholesky_ex(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype))
        if not failed:
            return found
        ridge = 10 * ridge
    raise UsageError("The moments of the keys hold what is no finite number; measure them again: byheart calibrate.")


def solve(factor: Tensor, keys: Iterable[Float[Tensor, " K"]]) -> Tensor:
    """The products (K, n), float64, of the inverse of what was factored and each of n keys."""
    return torch.cholesky_solve(torch.stack([key.double().cpu() for key in keys], dim=1), factor)


def _file(name: str, path: str) -> Path:
    return cache_folder() / "key-moments" / name / f"{path}.safetensors"


def _read(file: Path, name: str, width: int) -> Tensor | None:
    try:
        with open_tensors(file) as opened:
            moments = opened.read().get(_NAME) if opened.metadata.get(_MODEL) == name else None
    except (OSError, ValueError):
        return None
    fits = moments is not None and moments.shape == (width, width) and moments.dtype == torch.float32
    return moments if fits else None
