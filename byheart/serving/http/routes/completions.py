"""POST /v1/completions: the continuation of bare text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.responses import Response

from byheart.serving.http.call import Call
from byheart.serving.http.routes.asking import Asked, ask, make_id, read_question, reason, usage
from byheart.serving.http.streams import EventStream
from byheart.serving.http.wire.encoding import encode_event, json_response
from byheart.serving.http.wire.questions import CompletionBody
from byheart.serving.jobs import Finished, TokenScore

_DEFAULT_TOKENS = 16
"""OpenAI's, for this route."""


async def create_completion(call: Call) -> Response:
    """The continuations of one or more texts, whole or as they are made."""
    body = await read_question(call, CompletionBody)
    asked = await ask(
        call,
        body,
        [body.prompt] if isinstance(body.prompt, str) else body.prompt,
        max_tokens=body.max_tokens or _DEFAULT_TOKENS,
        answers=body.n or 1,
        stop=body.stop or (),
        logprobs=body.logprobs,
    )
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = _stream(asked, with_usage=with_usage)
        return EventStream(events, request_id=call.id, close=asked.answers.close)
    choices = [
        _choice(number, outcome.text, outcome.scores, reason(outcome.finished), 0)
        for number, outcome in enumerate(await asked.finish())
    ]
    return json_response({**_head(asked), "choices": choices, "usage": usage(asked.answers.outcomes)})


async def _stream(asked: Asked, *, with_usage: bool) -> AsyncGenerator[bytes, None]:
    head, offsets = _head(asked), [0] * len(asked.answers.outcomes)
    async for number, part in asked.answers.parts():
        if isinstance(part, Finished):
            choice = _choice(number, "", (), reason(part), 0)
        else:
            choice = _choice(number, part.text, part.scores, None, offsets[number])
            offsets[number] += sum(len(score.token) for score in part.scores)
        yield encode_event({**head, "choices": [choice]})
    if with_usage:
        yield encode_event({**head, "choices": [], "usage": usage(asked.answers.outcomes)})


def _head(asked: Asked) -> dict[str, Any]:
    head = {"id": make_id("cmpl"), "object": "text_completion", "created": asked.created, "model": asked.model}
    return head if asked.memory is None else {**head, "memory": asked.memory}


def _choice(
    number: int, text: str, scores: Sequence[TokenScore], finish_reason: str | None, offset: int
) -> dict[str, Any]:
    logprobs = _logprobs(scores, offset) if scores else None
    return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(scores: Sequence[TokenScore], offset: int) -> dict[str, Any]:
    offsets = []
    for score in scores:
        offsets.append(offset)
        offset += len(score.token)
    return {
        "tokens": [score.token for score in scores],
        "token_logprobs": [max(score.logprob, -9999.0) for score in scores],
        "top_logprobs": [{token: max(value, -9999.0) for token, value in score.likeliest} for score in scores],
        "text_offset": offsets,
    }
