"""Readers of the formats in which the papers' authors released what they trained."""

from byheart.published.ccm import ccm
from byheart.published.memoryllm import memoryllm

__all__ = ["ccm", "memoryllm"]
