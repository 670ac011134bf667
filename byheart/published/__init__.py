"""Readers of the formats in which the papers' authors released what they trained."""

from byheart.published.ccm import ccm
from byheart.published.memoryllm import memoryllm
from byheart.published.mplus import mplus

__all__ = ["ccm", "memoryllm", "mplus"]
