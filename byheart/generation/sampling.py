"""Choosing a token from scores: the likeliest, or one drawn by a generator of the sequence's own.

Dimensions: V vocabulary.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.generation.decoding import Decoding


def make_generator(decoding: Decoding) -> torch.Generator | None:
    """The random numbers of one sequence; PyTorch's own without a seed."""
    return None if decoding.seed is None else torch.Generator().manual_seed(decoding.seed)


def sample(scores: Float[Tensor, " V"], decoding: Decoding, generator: torch.Generator | None) -> int:
    """A token drawn from the scores at a temperature above 0."""
    ordered, tokens = (scores / decoding.temperature).sort(descending=True)
    probabilities = torch.softmax(ordered, dim=-1)
    before = probabilities.cumsum(-1) - probabilities
    allowed = before < decoding.top_p
    # The likeliest always is: a probability that single precision does not hold leaves no other.
    allowed[0] = True
    if decoding.top_k:
        allowed[decoding.top_k :] = False
    drawn = torch.multinomial((probabilities * allowed).cpu(), 1, generator=generator)
    return int(tokens[drawn.to(tokens.device)])
