"""An answer while it is made: from what is asked to a request, and from tokens to pieces of text."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from byheart.errors import InputError
from byheart.generation.contrast import require_contrast
from byheart.generation.generate import Request, RunningSequence, ScoredToken
from byheart.model.reading import Reading
from byheart.serving.engine.ticket import Ticket
from byheart.serving.jobs import Ask, Finished, Piece, TokenScore
from byheart.session.session import Session
from byheart.text.detokenize import Detokenizer, stop_strings
from byheart.text.encoder import ChatEncoder


class Answer:
    """What becomes of a job's tokens.

    Raises UsageError for a stop string that is empty.
    """

    def __init__(self, ticket: Ticket, job: Ask, encoder: ChatEncoder, request: Request) -> None:
        self.ticket = ticket
        self._detokenizer = Detokenizer(encoder, stop_strings(job.stop))
        self._encoder = encoder
        self._slots, self._prompt_tokens = request.reading.slots, len(request.prompt)
        self._scores: list[TokenScore] = []

    @property
    def is_ended(self) -> bool:
        """Whether its text is complete."""
        return self._detokenizer.ended

    def push(self, sequence: RunningSequence) -> Iterator[Piece | Finished]:
        """What the newest token of the sequence adds."""
        if sequence.last is not None and sequence.scored is not None:
            self._scores.append(self._score(sequence.scored))
        is_cut = sequence.ended and sequence.last is not None
        text = self._detokenizer.push(sequence.last)
        is_cut = is_cut and not self._detokenizer.ended
        if is_cut:
            text += self._detokenizer.finish()
        if text or (self._scores and self._detokenizer.ended):
            yield Piece(text, tuple(self._scores))
            self._scores = []
        if self._detokenizer.ended:
            yield Finished(
                "length" if is_cut else "stop",
                prompt_tokens=self._slots + self._prompt_tokens,
                cached_tokens=self._slots,
                completion_tokens=len(sequence.tokens),
            )

    def _score(self, scored: ScoredToken) -> TokenScore:
        likeliest = tuple((self._encoder.decode([token]), logprob) for token, logprob in scored.likeliest)
        return TokenScore(self._encoder.decode([scored.token]), scored.logprob, likeliest)


def request_for(job: Ask, encoder: ChatEncoder, session: Session | None) -> Request:
    """What a generation needs to answer a job, about a memory or none. Raises InputError and UsageError."""
    decoding = job.decoding
    prompt = _prompt(job, encoder, session)
    alone = prompt if session is None or decoding.context_aware is None else _prompt(job, encoder, None)
    reading = Reading() if session is None else session.reading_for(_last_text(job))
    require_contrast(decoding, [reading])
    return Request(prompt, reading, decoding, alone, encoder.stop_tokens, job.logprobs)


def _prompt(job: Ask, encoder: ChatEncoder, session: Session | None) -> Tensor:
    """The tokens (T,) of what is asked, after a memory or alone."""
    if session is not None:
        encoder = session.encoder
    if isinstance(job.prompt, str):
        if session is not None:
            return session.prompt(job.prompt, use_chat_template=False)
        return encoder.question(job.prompt, continues=False, use_chat_template=False)
    messages = [(message.role, message.content) for message in job.prompt]
    if session is None:
        return encoder.conversation(messages)
    has_turns = session.method.text_format == "turn" or encoder.prompt_format is not None
    continues = has_turns and bool(session.header.written)
    return encoder.conversation(messages, continues=continues, first=not session.method.own_start)


def _last_text(job: Ask) -> str:
    """What the user said last, by which a method may select what it reads."""
    if isinstance(job.prompt, str):
        return job.prompt
    if not job.prompt:
        raise InputError("There is nothing to ask: the conversation has no message.")
    return job.prompt[-1].content
