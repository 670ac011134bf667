"""POST /v1/chat/completions: a conversation's next message."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response

from byheart.serving.http.call import Call
from byheart.serving.http.routes.asking import Asked, ask, make_id, read_question, reason, require_question, usage
from byheart.serving.http.streams import EventStream
from byheart.serving.http.wire.encoding import encode_event, json_response
from byheart.serving.http.wire.questions import ChatBody
from byheart.serving.jobs import Finished, TokenScore


async def create_chat(call: Call) -> Response:
    """The answer to a conversation, whole or as it is made."""
    body = await read_question(call, ChatBody)
    messages = require_question([message.to_message() for message in body.messages])
    asked = await ask(
        call,
        body,
        [messages],
        max_tokens=body.max_completion_tokens or body.max_tokens,
        answers=body.n or 1,
        stop=body.stop or (),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = _stream(asked, with_usage=with_usage)
        return EventStream(events, request_id=call.id, close=asked.answers.close)
    outcomes = await asked.finish()
    choices = [
        {
            "index": number,
            "message": {"role": "assistant", "content": outcome.text, "refusal": None},
            "logprobs": _logprobs(outcome.scores) if body.logprobs else None,
            "finish_reason": reason(outcome.finished),
        }
        for number, outcome in enumerate(outcomes)
    ]
    return json_response({**_head(asked, "chat.completion"), "choices": choices, "usage": _usage(asked)})


async def _stream(asked: Asked, *, with_usage: bool) -> AsyncGenerator[bytes, None]:
    head = _head(asked, "chat.completion.chunk")
    begun: set[int] = set()
    async for number, part in asked.answers.parts():
        if number not in begun:
            begun.add(number)
            yield _event(head, number, {"role": "assistant", "content": ""})
        if isinstance(part, Finished):
            yield _event(head, number, {}, reason(part))
        else:
            yield _event(head, number, {"content": part.text}, scores=part.scores)
    if asked.written is not None:
        await asked.write_turn()
        yield encode_event({**head, "choices": [], "memory": asked.memory})
    if with_usage:
        yield encode_event({**head, "choices": [], "usage": _usage(asked)})


def _event(
    head: dict[str, Any],
    number: int,
    delta: dict[str, str],
    finish_reason: str | None = None,
    scores: tuple[TokenScore, ...] = (),
) -> bytes:
    choice = {
        "index": number,
        "delta": delta,
        "logprobs": _logprobs(scores) if scores else None,
        "finish_reason": finish_reason,
    }
    return encode_event({**head, "choices": [choice]})


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    head = {"id": make_id("chatcmpl"), "object": kind, "created": asked.created, "model": asked.model}
    return head if asked.memory is None else {**head, "memory": asked.memory}


def _usage(asked: Asked) -> dict[str, Any]:
    """What the answers took; a prompt that has several is counted once."""
    outcomes = asked.answers.outcomes
    counted, first = usage(outcomes), usage(outcomes[:1])
    counted |= {name: first[name] for name in ("prompt_tokens", "prompt_tokens_details")}
    return {**counted, "total_tokens": counted["prompt_tokens"] + counted["completion_tokens"]}


def _logprobs(scores: list[TokenScore] | tuple[TokenScore, ...]) -> dict[str, Any]:
    content = [
        {
            **_scored(score.token, score.logprob),
            "top_logprobs": [_scored(token, logprob) for token, logprob in score.likeliest],
        }
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _scored(token: str, logprob: float) -> dict[str, Any]:
    # JSON has no infinity, and OpenAI says -9999 for what cannot be.
    return {"token": token, "logprob": max(logprob, -9999.0), "bytes": list(token.encode("utf-8", "replace"))}
