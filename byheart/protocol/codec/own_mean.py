"""What the tokens of a text have in common, coded once before them: the mean of their components.

Attention averages many slots. Errors that tokens make by themselves cancel there, and an error of their mean does not.
So the mean is taken off the tokens, and is coded like one token more, in finer steps:

    row 0        m = sqrt(T) times the mean of y_1 ... y_T
    rows 1 to T  y_t - m / sqrt(T)

Times sqrt(T), m has the numbers of a turn of the coordinates along the text, so that an error in it is as large as the
same error in one token. The longer a text, the larger is m beside a token, and the wider are the tables that it is
coded with. In a short text a row more takes too many of its bytes, so there is none.

Dimensions: T tokens, R rows: T, and one before them or none, C components.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from byheart.protocol.codec.entropy import PER_DOUBLING
from byheart.protocol.codec.levels import MOST_SHIFT, Shifts

SHORTEST = 64
"""Tokens of the shortest text whose mean is coded: there a row more adds 2 % to squared errors, with 16 tokens 17 %."""
# Of so many tokens, the mean carries as much as what is left of one of them, nearly.
_ALIKE = 16
# Steps of the mean are half of those of a token without a shift.
_FINER = 2


def rows_before(tokens: int) -> int:
    """How many rows stand before those of so many tokens."""
    return int(tokens >= SHORTEST)


def shifts_before(tokens: int) -> Shifts:
    """By how many tables the rows before the tokens' are wider: about the root of the tokens in common units.

    From the number of binary digits, so that every machine has the same.
    """
    doublings = min(MOST_SHIFT, PER_DOUBLING // 2 * ((1 + tokens // _ALIKE).bit_length() - 1))
    return np.full(rows_before(tokens), doublings, np.int16)


def take_off(rows: Float[Tensor, "R C"], tokens: int) -> None:
    """Put the mean of the tokens' rows into the row before them, and take it off them, in place."""
    before = rows_before(tokens)
    if before:
        mean = rows[before:].mean(0, dtype=torch.float32)
        rows[0] = mean / _unit(tokens)
        rows[before:] -= mean.to(rows.dtype)


def put_back(rows: Float32[Tensor, "R C"], tokens: int) -> Float32[Tensor, "T C"]:
    """The tokens' components, from what was decoded."""
    before = rows_before(tokens)
    return rows[before:].add_(rows[0] * _unit(tokens)) if before else rows


def _unit(tokens: int) -> float:
    """What 1 in the row before the tokens stands for, in their mean."""
    return float(2.0 ** (int(shifts_before(tokens)[0]) / PER_DOUBLING)) / (_FINER * math.sqrt(tokens))
