"""An answer while it is made: from what is asked to a request, and from tokens to pieces of text."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from byheart.errors import InputError
from byheart.generation.contrast import require_contrast
from byheart.generation.generate import Request, RunningSequence, ScoredToken
from byheart.model.reading import Reading
from byheart.model.slices import Slices
from byheart.serving.engine.aside import Aside
from byheart.serving.engine.ticket import Ticket
from byheart.serving.jobs import Ask, Finished, Piece, TokenScore
from byheart.session.session import Session
from byheart.text.conversation import is_usual
from byheart.text.detokenize import Detokenizer, stop_strings
from byheart.text.encoder import ChatEncoder

# Characters of a question that become tokens within some milliseconds.
_QUICK = 1 << 14


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


def request_in_slices(
    job: Ask, encoder: ChatEncoder, session: Session | None, positions: int, aside: Aside
) -> Slices[Request]:
    """What a generation needs to answer a job, about a memory or none. Raises InputError and UsageError."""
    decoding, both = job.decoding, session is not None and job.decoding.context_aware is not None

    def prompts(encoder: ChatEncoder) -> tuple[Tensor, Tensor]:
        prompt = _prompt(job, encoder, session)
        return prompt, _prompt(job, encoder, None) if both else prompt

    own = encoder if session is None else session.encoder
    prompt, alone = prompts(own) if _is_quick(job) else (yield from aside.run(own, prompts))
    if len(prompt) > positions:
        raise InputError(f"What is asked has {len(prompt):,} tokens; the model reads at most {positions}. Ask less.")
    reading = Reading() if session is None else session.reading_for(_last_text(job))
    require_contrast(decoding, [reading])
    return Request(prompt, reading, decoding, alone, encoder.stop_tokens, job.logprobs)


def _is_quick(job: Ask) -> bool:
    """Whether its tokens take no time to speak of."""
    if isinstance(job.prompt, str):
        return len(job.prompt) <= _QUICK
    roles = [message.role for message in job.prompt]
    return is_usual(roles) and sum(len(message.content) for message in job.prompt) <= _QUICK


def _prompt(job: Ask, encoder: ChatEncoder, session: Session | None) -> Tensor:
    """The tokens (T,) of what is asked, after a memory or alone."""
    continues, first = False, True
    if session is not None:
        has_turns = session.method.text_format == "turn" or encoder.prompt_format is not None
        continues, first = has_turns and bool(session.header.written), not session.method.own_start
    if isinstance(job.prompt, str):
        tokens = encoder.question(job.prompt, continues=continues, use_chat_template=False, first=first)
    else:
        messages = [(message.role, message.content) for message in job.prompt]
        tokens = encoder.conversation(messages, continues=continues, first=first)
    return tokens if session is None else tokens.to(session.backbone.device)


def _last_text(job: Ask) -> str:
    """What the user said last, by which a method may select what it reads."""
    if isinstance(job.prompt, str):
        return job.prompt
    if not job.prompt:
        raise InputError("There is nothing to ask: the conversation has no message.")
    return job.prompt[-1].content
