"""Many sessions at once: written and asked in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch

from byheart.errors import UsageError
from byheart.generation.generate import generate, require_contrast
from byheart.protocol.state import Written
from byheart.session.session import Session, make_decoding, stop_strings
from byheart.text.detokenize import texts_of


def write_many(
    sessions: Sequence[Session],
    texts: Sequence[str],
    *,
    source: str = "text",
    use_chat_template: bool | Sequence[bool] = True,
) -> None:
    """Write each session its own text, those of one length in one batch; sessions share one method.

    Args:
        use_chat_template: for all, or for each; without it a text is written bare, for bare questions to go on from.
    """
    if not sessions or len(sessions) != len(texts):
        raise UsageError(f"There are {len(texts)} texts for {len(sessions)} sessions.")
    method = sessions[0].method
    if any(session.method is not method for session in sessions):
        raise UsageError("Sessions written together must share one method.")
    each = [use_chat_template] * len(texts) if isinstance(use_chat_template, bool) else use_chat_template
    tokens = [
        session.document(text, use_chat_template=as_chat)
        for session, text, as_chat in zip(sessions, texts, each, strict=True)
    ]
    states = [session.state for session in sessions]
    for pieces in zip_longest(*map(method.pieces, tokens)):
        left = [n for n, piece in enumerate(pieces) if piece is not None]
        with torch.no_grad():
            written = method.write_many([states[n] for n in left], [pieces[n] for n in left])
        for n, state in zip(left, written, strict=True):
            states[n] = state
    for session, state, row, text in zip(sessions, states, tokens, texts, strict=True):
        session.acknowledge(state, Written.now(source, tokens=row.shape[1], characters=len(text)))


def ask_many(
    sessions: Sequence[Session], questions: Sequence[str], *, stop: str | Sequence[str] = (), **decoding: Any
) -> list[str]:
    """Ask each session its own question, as ``ask`` does, all in one batch over one backbone; memories may differ."""
    if not sessions or len(sessions) != len(questions):
        raise UsageError(f"There are {len(questions)} questions for {len(sessions)} sessions.")
    first = sessions[0]
    for session in sessions:
        session.require_written()
    if any(session.backbone is not first.backbone for session in sessions):
        raise UsageError("Sessions asked together must share one backbone.")
    how, pairs = make_decoding(decoding), list(zip(sessions, questions, strict=True))
    readings = [session.reading_for(question) for session, question in pairs]
    require_contrast(how, readings)
    prompts, others = ([each.prompt(question, alone=alone) for each, question in pairs] for alone in (False, True))
    own: dict[str, Any] = {"others": others, "decoding": how, "stop_tokens": first.encoder.stop_tokens}
    steps = generate(first.backbone, prompts, readings, **own)
    return [text.strip() for text in texts_of(steps, first.encoder.tokenizer, stop_strings(stop))]
