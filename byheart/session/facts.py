"""From a fact's text to its tokens: the places of characters become places of tokens."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from byheart.protocol.fact import Fact
from byheart.protocol.segments import common_prefix_length
from byheart.text.encoder import ChatEncoder
from byheart.text.fact_text import FactText


def encode_fact(
    encoder: ChatEncoder, text: FactText, tokens: Int[Tensor, " T"], *, first: bool, as_turn: bool = False
) -> Fact:
    """A fact whose ``tokens`` are what is written of it; ``first`` and ``as_turn`` as for ``encoder.document``.

    Its parts are found by encoding the text up to them: tokens that both have are before the place.
    """

    def place(end: int) -> int:
        before = encoder.document(text[:end], first=first, as_turn=False) if text[:end].strip() else tokens[:0]
        return common_prefix_length(tokens.tolist(), before.tolist())

    # A space before the target belongs to its first token.
    start = min(max(1, place(len(text[: text.start].rstrip()))), len(tokens) - 1)
    end = max(start + 1, place(text.start + len(text.target)))
    subject = place(text.index(text.subject) + len(text.subject)) if text.subject else start
    shown = encoder.document(text.shown, first=first, as_turn=as_turn)
    fact = Fact(tokens, min(max(1, subject), start) - 1, start, end, shown=shown)
    if not text.subject:
        return fact
    essence, alone = (
        encoder.document(part, first=True, as_turn=False) for part in (f"{text.subject} is a", text.subject)
    )
    shared = common_prefix_length(essence.tolist(), alone.tolist())
    return replace(fact, essence=essence, essence_subject=max(1, shared) - 1)
