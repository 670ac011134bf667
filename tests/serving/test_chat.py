"""Questions to a server, whole and streamed, with a memory and without."""

from __future__ import annotations

import json
from typing import Any

import pytest

from byheart.errors import InputError, StateMismatchError
from tests.serving.conftest import Site, chat, code


def _events(answer: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_question_without_a_memory(site: Site) -> None:
    answer = site.chat("What is it?").json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == " | What is it?"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert "memory" not in answer


def test_a_memory_is_named_in_three_ways_and_its_slots_are_cached_tokens(site: Site) -> None:
    made = site.make("cat", "The cat is called Muck.")
    ways: list[dict[str, Any]] = [
        {"json": chat("Who?", memory="cat")},
        {"json": chat("Who?", memory={"id": made["id"], "version": 1})},
        {"json": chat("Who?", model="tiny:cat")},
        {"json": chat("Who?"), "headers": {"X-Byheart-Memory": "cat"}},
    ]
    for way in ways:
        answer = site.ask("POST", "/v1/chat/completions", **way).json()
        assert answer["choices"][0]["message"]["content"] == "The cat is called Muck. | Who?"
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 23}
        assert answer["memory"] == {"id": made["id"], "version": 1}
    site.make("dog", "Rex")
    answer = site.ask(
        "POST", "/v1/chat/completions", json=chat("Who?", memory="cat"), headers={"x-byheart-memory": "dog"}
    )
    assert code(answer) == (400, "memory_ambiguous")


def test_a_turn_is_written_after_the_answer_where_the_request_wants_it(site: Site) -> None:
    site.make("talk")
    first = site.chat("One?", memory={"id": "talk", "write": True}).json()
    assert first["memory"]["version"] == 1
    streamed = _events(site.chat("Two?", memory={"id": "talk", "write": True}, stream=True))
    assert streamed[-1]["memory"]["version"] == 2
    assert "One? | One?" in site.chat("Three?", memory="talk").json()["choices"][0]["message"]["content"]
    assert site.ask("GET", "/v1/memories/talk").json()["version"] == 2
    stale = site.chat("Four?", memory={"id": "talk", "version": 1, "write": True})
    assert code(stale) == (409, "memory_version_conflict")


def test_a_stream_has_a_role_the_text_an_end_and_the_usage(site: Site) -> None:
    answer = site.chat("a b", stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=1)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = _events(answer)
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == " | a b"
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[1]["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] == -0.5
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 4
    assert len({event["id"] for event in events}) == 1


def test_several_answers_have_seeds_of_their_own_and_their_prompt_counts_once(site: Site) -> None:
    before = len(site.engine.asked)
    answer = site.chat("a", n=3, seed=7, temperature=0.5, max_tokens=2, stop="x").json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    jobs = site.engine.asked[before:]
    assert [job.decoding.seed for job in jobs] == [7, 8, 9]
    assert {(job.decoding.max_tokens, job.stop, job.tenant) for job in jobs} == {(2, ("x",), "alice")}
    assert answer["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 6,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 99}, "n"),
        ({"stop": [""]}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"memory": {"id": "cat", "rights": "all"}}, None),
        ({"memory": {"id": "cat", "write": True}, "n": 2}, "memory.write"),
        ({"top_logprobs": 3}, None),
        ({"seed": 1 << 70}, "seed"),
    ],
)
def test_a_field_that_cannot_be_done_is_named(site: Site, body: dict[str, Any], param: str | None) -> None:
    site.make("cat")
    answer = site.chat("Who?", **body)
    assert answer.status_code == 400, answer.text
    if param:
        assert answer.json()["error"]["param"] == param


def test_fields_that_change_nothing_are_left_alone(site: Site) -> None:
    harmless = {"user": "u", "metadata": {"a": "b"}, "store": True, "tools": [], "tool_choice": "auto", "n": None}
    more = {"response_format": {"type": "text"}, "frequency_penalty": 0, "logit_bias": {}, "stream": False}
    assert site.chat("Who?", **harmless, **more).status_code == 200


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"model": "none"}, (404, "model_not_found")),
        ({"model": "tiny:nobody"}, (404, "memory_not_found")),
        ({"memory": "nobody"}, (404, "memory_not_found")),
        ({"memory": {"id": "one", "version": 9}}, (404, "version_not_found")),
        ({"memory": "one", "model": "org/other:7b"}, (409, "memory_mismatch")),
    ],
)
def test_what_is_not_there_is_said(site: Site, more: dict[str, Any], expected: tuple[int, str]) -> None:
    site.make("one", "One.")
    assert code(site.chat("Who?", **more)) == expected


def test_a_busy_engine_says_when_to_come_back(site: Site) -> None:
    answer = site.chat("busy")
    assert code(answer) == (429, "queue_full")
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("2", "2000")


def test_an_error_before_the_first_token_is_a_status_and_later_an_event(site: Site) -> None:
    site.engine.error, site.engine.error_after = StateMismatchError("'/srv/x.safetensors' is of another model."), 0
    try:
        answer = site.chat("a", stream=True)
        assert code(answer) == (409, "memory_mismatch")
        assert answer.json()["error"]["message"] == "the file is of another model."
        site.engine.error_after = 1
        events = _events(site.chat("a b", stream=True))
        assert events[-1]["error"]["code"] == "memory_mismatch"
        site.engine.error = RuntimeError("secret")
        answer = site.chat("a b")
        assert code(answer) == (500, "internal_error")
        assert "secret" not in answer.text
        site.engine.error = InputError("Too long.")
        assert code(site.chat("a b")) == (400, "invalid_text")
    finally:
        site.engine.error, site.engine.error_after = None, 1 << 30
    assert site.engine.running == 0


def test_completions_continue_bare_text(site: Site) -> None:
    body = {"model": "tiny", "prompt": ["a", "b c"], "logprobs": 2, "max_tokens": 3}
    answer = site.ask("POST", "/v1/completions", json=body).json()
    assert [choice["text"] for choice in answer["choices"]] == [" | a", " | b"]
    assert answer["choices"][0]["logprobs"]["text_offset"] == [0, 0, 2]
    assert answer["usage"]["prompt_tokens"] == 4
    streamed = site.ask("POST", "/v1/completions", json={"model": "tiny", "prompt": "a", "stream": True})
    assert "".join(event["choices"][0]["text"] for event in _events(streamed)) == " | a"
    assert code(site.ask("POST", "/v1/completions", json={"prompt": [1, 2]})) == (400, "invalid_value")
    assert code(site.ask("POST", "/v1/completions", json={"prompt": "a", "suffix": "b"})) == (400, "unsupported_field")


def test_responses_take_text_or_messages_and_keep_nothing(site: Site) -> None:
    body = {"model": "tiny", "input": "Who?", "instructions": "Be brief.", "max_output_tokens": 1}
    answer = site.ask("POST", "/v1/responses", json=body).json()
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [message.role for message in site.engine.asked[-1].prompt] == ["system", "user"]
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "Who?"}]}]
    streamed = site.ask("POST", "/v1/responses", json={"model": "tiny", "input": parts, "stream": True}).text
    events = [json.loads(line[6:]) for line in streamed.split("\n") if line.startswith("data: ")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == " | Who?"
    for field in ("conversation", "previous_response_id"):
        answer = site.ask("POST", "/v1/responses", json={"model": "tiny", "input": "a", field: "x"})
        assert code(answer) == (400, "unsupported_field")


def test_models_are_bases_and_their_memories(site: Site) -> None:
    site.make("listed")
    models = {model["id"] for model in site.ask("GET", "/v1/models").json()["data"]}
    assert {"tiny", "org/other:7b", "tiny:listed"} <= models
    assert site.ask("GET", "/v1/models/org/other:7b").json()["id"] == "org/other:7b"
    assert site.ask("GET", "/v1/models/tiny:listed").json()["memory"]
    assert code(site.ask("GET", "/v1/models/none")) == (404, "model_not_found")
    assert {"full", "compact"} <= {method["id"] for method in site.ask("GET", "/v1/methods").json()["data"]}
