"""Readers of the formats in which others release what they trained: papers' authors, and the library PEFT."""

from byheart.published.ccm import ccm
from byheart.published.memoryllm import memoryllm
from byheart.published.mplus import mplus
from byheart.published.peft import peft

__all__ = ["ccm", "memoryllm", "mplus", "peft"]
