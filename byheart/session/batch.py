"""Many sessions at once: written and asked in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from byheart.errors import UsageError
from byheart.generation.contrast import require_contrast
from byheart.generation.decoding import Decoding, DecodingOptions, with_options
from byheart.generation.generate import Generation, Request
from byheart.model.backbone import Backbone
from byheart.protocol.segments import write_in_step
from byheart.protocol.state import State, Written
from byheart.session.session import Session
from byheart.text.detokenize import Detokenizer, stop_strings
from byheart.text.encoder import ChatEncoder
from byheart.text.fact_text import FactText

_DEFAULTS = Decoding()


def write_many(
    sessions: Sequence[Session],
    texts: Sequence[str],
    *,
    source: str = "text",
    use_chat_template: bool | Sequence[bool] = True,
) -> None:
    """Write each session its own text, those of one length in one batch; sessions share one method.

    A text may be a FactText, which marks what is to be known.

    Args:
        use_chat_template: for all, or for each; without it a text is written bare, for bare questions to continue.
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
    for session, row, as_chat in zip(sessions, tokens, each, strict=True):
        session.require_room(row, use_chat_template=as_chat)
    with torch.no_grad():
        states = _write(sessions, texts, tokens, each)
    for session, state, row, text in zip(sessions, states, tokens, texts, strict=True):
        session.acknowledge(state, Written.now(source, tokens=row.shape[1], characters=len(text)))


def _write(
    sessions: Sequence[Session], texts: Sequence[str], tokens: Sequence[Tensor], as_chat: Sequence[bool]
) -> list[State]:
    """The states after a text each; of those that are facts the method is given the marks."""
    method, after = sessions[0].method, [session.state for session in sessions]
    facts = {
        n: sessions[n].fact(text, tokens[n], use_chat_template=as_chat[n])
        for n, text in enumerate(texts)
        if isinstance(text, FactText)
    }
    others = [n for n in range(len(texts)) if n not in facts]
    written = [
        *(method.write_facts([after[n] for n in facts], [*facts.values()]) if facts else ()),
        *write_in_step([after[n] for n in others], [method.pieces(tokens[n]) for n in others], method.write_many),
    ]
    for n, state in zip([*facts, *others], written, strict=True):
        after[n] = state
    return after


def ask_many(
    sessions: Sequence[Session],
    questions: Sequence[str],
    decoding: Decoding | Sequence[Decoding] = _DEFAULTS,
    *,
    stop: str | Sequence[str] = (),
    **options: Unpack[DecodingOptions],
) -> list[str]:
    """Ask each session its own question, as ``ask`` does, all together over one backbone; memories may differ.

    Args:
        decoding: of all answers, or one for each.
        stop: strings that end an answer.
        options: fields of ``decoding`` to change.

    Raises InputError and UsageError.
    """
    if not sessions or len(sessions) != len(questions):
        raise UsageError(f"There are {len(questions)} questions for {len(sessions)} sessions.")
    decodings = [decoding] * len(sessions) if isinstance(decoding, Decoding) else list(decoding)
    if len(decodings) != len(sessions):
        raise UsageError(f"There are {len(decodings)} decodings for {len(sessions)} sessions.")
    for session in sessions:
        session.require_written()
    if any(session.backbone is not sessions[0].backbone for session in sessions):
        raise UsageError("Sessions asked together must share one backbone.")
    requests = [
        session.request(question, with_options(decoding, options))
        for session, question, decoding in zip(sessions, questions, decodings, strict=True)
    ]
    return [
        text.strip() for text in answer_many(sessions[0].backbone, sessions[0].encoder, requests, stop_strings(stop))
    ]


def answer_many(
    backbone: Backbone,
    encoder: ChatEncoder,
    requests: Sequence[Request],
    stops: Sequence[str] = (),
    *,
    begun: Callable[[], None] = lambda: None,
) -> list[str]:
    """The texts that answer requests, made together; an answer that has ended costs nothing more.

    Args:
        begun: called once the first token of every answer is there.

    Raises InputError, and UsageError where contrast would be plain decoding.
    """
    for request in requests:
        require_contrast(request.decoding, [request.reading for request in requests])
    generation = Generation(backbone)
    sequences = generation.add(requests)
    detokenizers = {id(sequence): Detokenizer(encoder, stops) for sequence in sequences}
    is_begun = False
    while generation.running:
        stepped = generation.step()
        if not is_begun:
            begun()
            is_begun = True
        for sequence in stepped:
            detokenizers[id(sequence)].push(sequence.last)
        generation.remove([sequence for sequence in stepped if detokenizers[id(sequence)].ended])
    for sequence in sequences:
        detokenizers[id(sequence)].finish()
    return [detokenizers[id(sequence)].text for sequence in sequences]
