"""POST /v1/responses: OpenAI's newer form of a conversation, without the server keeping it.

What it keeps is a memory, and only where the request says so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response

from byheart.serving.http.call import Call
from byheart.serving.http.routes.asking import Asked, ask, make_id, read_question, require_question, usage
from byheart.serving.http.streams import EventStream
from byheart.serving.http.wire.encoding import encode_event, json_response
from byheart.serving.http.wire.questions import ResponseBody
from byheart.serving.jobs import Finished, Message


async def create_response(call: Call) -> Response:
    """The answer to a text or a conversation, whole or as it is made."""
    body = await read_question(call, ResponseBody)
    asked = await ask(call, body, [_messages(body)], max_tokens=body.max_output_tokens)
    made = _Made(asked, body)
    if body.stream:
        return EventStream(
            made.stream(), request_id=call.id, close=asked.answers.close, ends_with_done=False, error_name="error"
        )
    await asked.finish()
    return json_response(made.response(is_done=True))


def _messages(body: ResponseBody) -> list[Message]:
    given = body.input
    messages = [Message("user", given)] if isinstance(given, str) else [message.to_message() for message in given]
    require_question(messages)
    return [Message("system", body.instructions), *messages] if body.instructions else messages


class _Made:
    """A response on its way, and the events that tell of it, which are numbered."""

    def __init__(self, asked: Asked, body: ResponseBody) -> None:
        self._asked, self._body = asked, body
        self._id, self._item_id = make_id("resp"), make_id("msg")
        self._number = 0

    def response(self, *, is_done: bool) -> dict[str, Any]:
        """The object as it is now."""
        body, outcome = self._body, self._asked.answers.outcomes[0]
        is_cut = outcome.finished is not None and outcome.finished.reason == "length"
        status = ("incomplete" if is_cut else "completed") if is_done else "in_progress"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._asked.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_done and is_cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._asked.model,
            "output": [self._item(status)] if is_done else [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature or 0.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p or 1.0,
            "truncation": "disabled",
            "usage": _usage(self._asked) if is_done else None,
            **({} if self._asked.memory is None else {"memory": self._asked.memory}),
        }

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The events, in the order in which OpenAI sends them."""
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        started = self.response(is_done=False)
        yield self._event("response.created", response=started)
        yield self._event("response.in_progress", response=started)
        item = {**self._item("in_progress"), "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **place, part=_part(""))
        async for _, part in self._asked.answers.parts():
            if not isinstance(part, Finished):
                yield self._event("response.output_text.delta", **place, delta=part.text, logprobs=[])
        await self._asked.write_turn()
        ended = self.response(is_done=True)
        text = self._asked.answers.outcomes[0].text
        yield self._event("response.output_text.done", **place, text=text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=_part(text))
        yield self._event("response.output_item.done", output_index=0, item=ended["output"][0])
        yield self._event(f"response.{ended['status']}", response=ended)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return encode_event(event, kind)

    def _item(self, status: str) -> dict[str, Any]:
        content = [_part(self._asked.answers.outcomes[0].text)]
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(asked: Asked) -> dict[str, Any]:
    counted = usage(asked.answers.outcomes)
    return {
        "input_tokens": counted["prompt_tokens"],
        "input_tokens_details": counted["prompt_tokens_details"],
        "output_tokens": counted["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted["total_tokens"],
    }
