"""A fact as a method that edits knowledge is given it: a sentence, and where its subject and what is to be known stand.

Dimensions: T tokens, E tokens of another prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class Fact:
    """A sentence that says one thing of a subject.

    Args:
        tokens: as they are written.
        subject: the place of the subject's last token, before ``start``.
        start, end: the places of the first token of what is to be known, and of the one after its last.
        essence: a prompt that asks what the subject is, which should be answered as before; none where there is no
            subject. ``essence_subject`` is the place of the subject's last token in it.
        shown: the same fact among demonstrations, as it is written where a model is to learn it from its context.
    """

    tokens: Int[Tensor, " T"]
    subject: int
    start: int
    end: int
    essence: Int[Tensor, " E"] = field(default_factory=_none)
    essence_subject: int = 0
    shown: Int[Tensor, " S"] = field(default_factory=_none)

    @classmethod
    def of_text(cls, tokens: Int[Tensor, " T"], learned_tokens: int) -> Fact:
        """A text without marks, of two tokens or more: its last ones are to be known, the one before is the subject."""
        start = max(1, len(tokens) - learned_tokens)
        return cls(tokens, start - 1, start, len(tokens), shown=tokens)
