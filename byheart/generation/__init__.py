"""From a reading and a prompt to tokens."""

from byheart.generation.decoding import Decoding, DecodingOptions
from byheart.generation.generate import Generation, Request, RunningSequence, ScoredToken, generate
from byheart.generation.likelihood import Likelihood, likelihoods

__all__ = [
    "Decoding",
    "DecodingOptions",
    "Generation",
    "Likelihood",
    "Request",
    "RunningSequence",
    "ScoredToken",
    "generate",
    "likelihoods",
]
