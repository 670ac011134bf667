"""Token ids split into segments, and compared from their start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from jaxtyping import Int
from torch import Tensor

from byheart.errors import InputError, UsageError
from byheart.model.backbone import Backbone


def split_segments(segment: Int[Tensor, "B T"], *, longest: int, shortest: int = 1) -> Iterator[Int[Tensor, "B t"]]:
    """Pieces of at most ``longest`` tokens; a last piece under ``shortest`` shares evenly with the one before it.

    Raises InputError for an empty text.
    """
    if segment.shape[1] == 0:
        raise InputError("There is nothing to write: the text is empty.")
    tokens, start = segment.shape[1], 0
    while start < tokens:
        left = tokens - start
        length = min(longest, left)
        if 0 < left - length < shortest:
            length = max(1, left - max(shortest, left // 2))
        yield segment[:, start : start + length]
        start += length


def require_known(backbone: Backbone, **options: Sequence[int]) -> None:
    """Raise UsageError for an option with a token that is not in the model's vocabulary."""
    known = backbone.embedding.num_embeddings
    for option, ids in options.items():
        for token in ids:
            if not 0 <= token < known:
                raise UsageError(f"{option} holds token {token}, and the model knows those from 0 to {known - 1}.")


def common_prefix_length(ids: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, other, strict=False)))
