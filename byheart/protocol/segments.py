"""Cutting token ids into segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from jaxtyping import Int
from torch import Tensor

from byheart.errors import InputError


def split_segments(segment: Int[Tensor, "B T"], *, longest: int, shortest: int = 1) -> Iterator[Int[Tensor, "B t"]]:
    """Pieces of at most ``longest`` tokens; a last piece under ``shortest`` shares evenly with the one before it."""
    if segment.shape[1] == 0:
        raise InputError("There is nothing to write: the text is empty.")
    tokens, start = segment.shape[1], 0
    while start < tokens:
        left = tokens - start
        take = min(longest, left)
        if 0 < left - take < shortest:
            take = left - max(shortest, left // 2)
        yield segment[:, start : start + max(take, 1)]
        start += max(take, 1)


def common_prefix_length(ids: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, other, strict=False)))
