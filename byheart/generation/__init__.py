"""From a reading and a prompt to tokens."""

from byheart.generation.decoding import Decoding
from byheart.generation.generate import generate
from byheart.generation.likelihood import Likelihood, likelihoods

__all__ = ["Decoding", "Likelihood", "generate", "likelihoods"]
