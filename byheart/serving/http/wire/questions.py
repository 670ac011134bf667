"""Bodies of OpenAI's routes that make answers, and which of their fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from byheart.generation.decoding import Decoding
from byheart.serving.http.failures import Refusal
from byheart.serving.http.wire.fields import MemoryChoice, Name, Open
from byheart.serving.jobs import Message, Role

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("tools", "functions", "audio", "logit_bias", "web_search_options", "suffix", "echo"), ()),
    **dict.fromkeys(("conversation", "previous_response_id", "background", "include"), ()),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_p"), (0,)),
    **dict.fromkeys(("repetition_penalty", "best_of"), (1,)),
    "response_format": ({"type": "text"},),
    "text": ({"format": {"type": "text"}}, {"format": {"type": "text"}, "verbosity": "medium"}),
    "modalities": (["text"],),
    "reasoning": ({"effort": "none"},),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "truncation": ("disabled",),
}
"""Fields that would change an answer, and the values of each with which it changes nothing, beside empty ones."""
_EMPTY: tuple[Any, ...] = (None, False, "", [], {})
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

Tokens: TypeAlias = Annotated[int, Field(ge=1, le=1 << 20)]
Number: TypeAlias = Annotated[float, Field(ge=0, le=1000)]


def refuse_unsupported(fields: dict[str, Any]) -> None:
    """Raise Refusal for a field that byheart does not do, and that would change the answer."""
    for name in UNSUPPORTED.keys() & fields.keys():
        if fields[name] not in (*_EMPTY, *UNSUPPORTED[name]):
            raise Refusal(400, "unsupported_field", f"This server does not do '{name}'; leave it out.", param=name)


def _as_list(stop: str | list[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else stop or []


_Stop: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Question(Open):
    """What all questions have: a model, a memory, and how tokens are chosen."""

    model: Annotated[str, StringConstraints(max_length=512)] | None = None
    memory: Name | MemoryChoice | None = None
    stream: bool | None = None
    temperature: Number | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None

    def decoding(self, max_tokens: int, answer: int = 0) -> Decoding:
        """How the tokens of the n-th answer are chosen; each has a seed of its own."""
        return Decoding(
            max_tokens=max_tokens,
            temperature=self.temperature or 0.0,
            top_p=self.top_p or 1.0,
            top_k=self.top_k or 0,
            seed=None if self.seed is None else (self.seed + answer) % (1 << 63),
        )


class StreamOptions(Open):
    """What a stream has beside its text."""

    include_usage: bool | None = None


class TextPart(Open):
    """A part of a message's content that is text; there are no others here."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class ChatMessage(Open):
    """A message as OpenAI has it."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=1024)]

    def to_message(self) -> Message:
        """As the engine takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(_ROLES[self.role], text)


Messages: TypeAlias = Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]


class ChatBody(Question):
    """Of POST /v1/chat/completions."""

    messages: Messages
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Annotated[_Stop | Annotated[list[_Stop], Field(max_length=16)] | None, AfterValidator(_as_list)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class CompletionBody(Question):
    """Of POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=128)]
    max_tokens: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Annotated[_Stop | Annotated[list[_Stop], Field(max_length=16)] | None, AfterValidator(_as_list)] = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream_options: StreamOptions | None = None


class ResponseBody(Question):
    """Of POST /v1/responses."""

    input: str | Messages
    prompt: None = None
    """Templates of prompts are not kept here."""
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    metadata: dict[str, str] | None = None
