"""What all routes that answer questions have in common."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from byheart.serving.http.bodies import parse_model
from byheart.serving.http.call import Body, Call
from byheart.serving.http.choosing import Choice, choose, reference
from byheart.serving.http.failures import Refusal
from byheart.serving.http.outcomes import Answers, Outcome, until_gone
from byheart.serving.http.versions import Texts, require_version, write_texts
from byheart.serving.http.wire.questions import Question, refuse_unsupported
from byheart.serving.jobs import Ask, Finished, Message, NewText


@dataclass
class Asked:
    """A question that was understood, and its answers as they come."""

    call: Call
    choice: Choice
    answers: Answers
    model: str
    """As the request names it."""
    written: NewText | None = None
    """The question, where the turn is to be written."""
    created: int = field(default_factory=lambda: int(time.time()))
    memory: dict[str, Any] | None = None
    """The memory that was read and, once the turn was written, its new version."""

    async def write_turn(self) -> None:
        """Write the turn that was answered, where the request wants it. Raises as ``write_texts`` does."""
        if self.written is not None and self.choice.memory is not None:
            turn = NewText(self.written.text, self.written.source, self.answers.outcomes[0].text)
            expected = self.choice.memory.version if self.choice.has_version else None
            version = await write_texts(self.call, self.choice.memory, Texts([turn], "chat", expected))
            self.memory = {"id": version.memory_id, "version": version.number, "written": dict(version.entry)}

    async def finish(self) -> list[Outcome]:
        """All answers, and the turn written; let go of when the client hangs up."""
        return await until_gone(self.call.request, self._finish())

    async def _finish(self) -> list[Outcome]:
        outcomes = await self.answers.finish()
        await self.write_turn()
        return outcomes


async def read_question(call: Call, kind: type[Body]) -> Body:
    """The body of a question. Raises Refusal."""
    fields = await call.fields()
    refuse_unsupported(fields)
    return parse_model(kind, fields)


async def ask(
    call: Call,
    body: Question,
    prompts: Sequence[Sequence[Message] | str],
    *,
    max_tokens: int | None,
    answers: int = 1,
    stop: Sequence[str] = (),
    logprobs: int | None = None,
) -> Asked:
    """Ask each prompt so many times, and wait until the first answer begins. Raises Refusal, and what engines raise."""
    settings = call.server.settings
    if len(prompts) * answers > settings.answers:
        raise Refusal(400, "invalid_value", f"A request may ask for {settings.answers} answers.", param="n")
    choice = await choose(call, body.model, body.memory)
    written = _turn_to_write(choice, prompts, answers)
    jobs = [
        Ask(
            choice.model,
            prompt,
            memory=reference(call.memories, choice.version),
            decoding=body.decoding(max_tokens or settings.default_tokens, number),
            stop=tuple(stop),
            logprobs=logprobs,
            tenant=call.tenant,
        )
        for prompt in prompts
        for number in range(answers)
    ]
    asked = Asked(call, choice, Answers(call.server.engine, call.server.metrics, jobs), body.model or choice.model)
    asked.written = written
    if choice.memory is not None:
        asked.memory = {"id": choice.memory.id, "version": choice.version.number if choice.version else 0}
    await until_gone(call.request, asked.answers.begin())
    return asked


def _turn_to_write(choice: Choice, prompts: Sequence[Sequence[Message] | str], answers: int) -> NewText | None:
    """The last message, where the turn is to be written. Raises Refusal, ConflictError."""
    if not choice.is_written or choice.memory is None:
        return None
    if len(prompts) * answers > 1 or isinstance(prompts[0], str):
        raise Refusal(400, "invalid_value", "Only a conversation with one answer can be written.", param="memory.write")
    if choice.has_version:
        require_version(choice.memory, choice.version.number if choice.version else 0)
    return NewText(prompts[0][-1].content, "chat")


def require_question(messages: Sequence[Message]) -> Sequence[Message]:
    """The same messages. Raises Refusal unless a user's is the last of them."""
    if messages[-1].role != "user":
        raise Refusal(400, "invalid_value", "messages: the last one must be a user's.", param="messages")
    return messages


def make_id(kind: str) -> str:
    """A new name of an answer."""
    return f"{kind}-{secrets.token_hex(12)}" if kind.endswith("cmpl") else f"{kind}_{secrets.token_hex(12)}"


def usage(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What answers took, as OpenAI has it; the slots of a memory are prompt tokens that were cached."""
    ends = [outcome.finished for outcome in outcomes if outcome.finished]
    prompt, cached, completion = (
        sum(getattr(end, name) for end in ends) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def reason(part: Finished | None) -> str:
    """Why an answer ended."""
    return part.reason if part else "stop"
