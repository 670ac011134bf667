"""Writing into a session in slices, so that its model can do something else in between."""

from __future__ import annotations

import torch
from torch import Tensor

from byheart.model.slices import Slices
from byheart.protocol.state import Written
from byheart.session.session import Session


def write_in_slices(
    session: Session,
    text: str,
    *,
    answer: str | None = None,
    source: str = "text",
    longest: int,
    tokens: Tensor | None = None,
) -> Slices[Written]:
    """As ``write``, or with an ``answer`` as ``write_turn``; gives the tokens read since the last pause.

    The session stays as it was until the end. Raises InputError.

    Args:
        longest: tokens that are read without a pause, where the method can pause.
        tokens: (1, T), where ``session.document`` was asked for them already.
    """
    if tokens is None:
        tokens = session.document(text, answer=answer)
    session.require_room(tokens)
    entry = Written.now(source, tokens=tokens.shape[1], characters=len(text) + len(answer or ""))
    with torch.no_grad():
        state = session.state
    state = yield from session.method.write_in_slices(state, tokens, longest=longest)
    return session.acknowledge(state, entry)
