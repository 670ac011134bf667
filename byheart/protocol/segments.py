"""Token ids split into segments, held to what a model reads, and compared from their start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile, zip_longest

from jaxtyping import Int
from torch import Tensor

from byheart.errors import InputError, UsageError
from byheart.model.backbone import Backbone
from byheart.protocol.state import State


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


def write_in_step(
    states: Sequence[State],
    pieces: Iterable[Iterator[Tensor]],
    write: Callable[[Sequence[State], Sequence[Tensor]], Sequence[State]],
) -> list[State]:
    """Many states after all of their pieces: the first of each are written together, then the second, and so on."""
    after = list(states)
    for row in zip_longest(*pieces):
        left = [n for n, piece in enumerate(row) if piece is not None]
        written = write([after[n] for n in left], [row[n] for n in left])
        for n, state in zip(left, written, strict=True):
            after[n] = state
    return after


def require_learnable(*segments: Int[Tensor, "B _"]) -> None:
    """Raise InputError for a text in which no token has a next one."""
    if any(segment.shape[1] < 2 for segment in segments):
        raise InputError("The text is too short to learn: give at least two tokens.")


SHORTER = "write less of it, or use a method of fixed size (window, latent-pool, compressed-kv)"
"""What can be done where a text is too long for a method that keeps all of it."""


def require_positions(backbone: Backbone, tokens: int, advice: str) -> None:
    """Raise InputError, which ends in ``advice``, for a text of more tokens than the model has positions."""
    if tokens > backbone.positions:
        raise InputError(
            f"The text has {tokens} tokens in all, but the model reads at most {backbone.positions}; {advice}."
        )


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
