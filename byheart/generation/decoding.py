"""How to choose tokens: the options of every answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from byheart.errors import UnknownNameError, UsageError, require_not_negative

_COOLEST, _HOTTEST = 1e-6, 1e6
"""Temperatures between which scores, divided by them, remain numbers of single precision."""


@dataclass(frozen=True)
class Decoding:
    """How to choose tokens.

    Args:
        max_tokens: the most tokens of an answer.
        temperature: 0 is greedy; above it, tokens are sampled.
        top_p, top_k: sample from the smallest set with this much probability, and from the k likeliest; 0 has no k.
        seed: of the sampling; each answer draws from a generator of its own, so it is the same alone and in any batch.
        contrast: FastMem's contrastive decoding with this strength (0.5 in the paper), or none.
        context_aware: CAD with this strength, or none.
        dola: ``high`` or ``low`` candidate layers chosen from the depth as published, their indices from 0, or none.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    contrast: float | None = None
    context_aware: float | None = None
    dola: str | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens must be 1 or more; it is {self.max_tokens}.")
        for name in ("temperature", "contrast", "context_aware"):
            if not math.isfinite(vars(self)[name] or 0):
                raise UsageError(f"{name} must be a finite number; it is {vars(self)[name]}.")
        if self.temperature and not _COOLEST <= self.temperature <= _HOTTEST:
            raise UsageError(
                f"temperature must be 0, or between {_COOLEST} and {_HOTTEST:,.0f}; it is {self.temperature}."
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1; it is {self.top_p}.")
        require_not_negative(top_k=self.top_k)
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed must be 0 or more, and below 2**64; it is {self.seed}.")
        chosen = [name for name in ("contrast", "context_aware", "dola") if vars(self)[name] is not None]
        if len(chosen) > 1:
            raise UsageError(f"Choose one of {', '.join(chosen)}.")


class DecodingOptions(TypedDict, total=False):
    """The fields of ``Decoding`` as keyword arguments."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    contrast: float | None
    context_aware: float | None
    dola: str | Sequence[int] | None


def with_options(decoding: Decoding, options: Any) -> Decoding:
    """``decoding`` with some of its fields changed. Raises UnknownNameError for what is no field, UsageError."""
    known = [field.name for field in fields(Decoding)]
    for name in options:
        if name not in known:
            raise UnknownNameError("option of decoding", name, known)
    return replace(decoding, **options)
