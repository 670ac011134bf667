"""The stock openai client, unchanged, against a server on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from openai import APIError, BadRequestError, ConflictError, NotFoundError, OpenAI, RateLimitError

from byheart.errors import StateMismatchError
from tests.serving.conftest import Build, Site
from tests.serving.live import serving

MESSAGES: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is it?"}]


@pytest.fixture(scope="module")
def live(build: Build) -> Iterator[tuple[Site, OpenAI]]:
    site = build()
    site.make("cat", "Muck.")
    with serving(site.app) as address, OpenAI(base_url=f"{address}/v1", api_key=site.alice, max_retries=0) as client:
        yield site, client


def test_chat(live: tuple[Site, OpenAI]) -> None:
    client = live[1]
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2, n=2)
    assert answer.choices[0].message.content == " | Who is it?"
    assert answer.choices[1].logprobs.content[0].top_logprobs[0].logprob == -0.5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id.startswith("req_")


def test_chat_streamed_about_a_memory(live: tuple[Site, OpenAI]) -> None:
    client = live[1]
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"memory": "cat"},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Muck. | Who is it?"
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 5
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_a_memory_by_the_models_name_and_by_a_header(live: tuple[Site, OpenAI]) -> None:
    client = live[1]
    named = client.chat.completions.create(model="tiny:cat", messages=MESSAGES)
    by_header = client.with_options(default_headers={"X-Byheart-Memory": "cat"})
    assert named.choices[0].message.content == "Muck. | Who is it?"
    answer = by_header.chat.completions.create(model="tiny", messages=MESSAGES)
    assert answer.choices[0].message.content == named.choices[0].message.content


def test_completions(live: tuple[Site, OpenAI]) -> None:
    client = live[1]
    answer = client.completions.create(model="tiny:cat", prompt="It is", max_tokens=2, logprobs=1)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Muck. |", "length")
    chunks = client.completions.create(model="tiny", prompt="It is", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == " | It is"


def test_responses(live: tuple[Site, OpenAI]) -> None:
    client = live[1]
    answer = client.responses.create(model="tiny:cat", input="Who?", instructions="Be brief.")
    assert answer.output_text == "Muck. | Who?"
    assert answer.usage.input_tokens_details.cached_tokens == 5
    with client.responses.stream(model="tiny", input=[{"role": "user", "content": "Who?"}]) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == " | Who?"
    assert final.status == "completed"


def test_models(live: tuple[Site, OpenAI]) -> None:
    client = live[1]
    assert {"tiny", "tiny:cat"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("tiny:cat").id == "tiny:cat"


def test_errors_have_the_types_of_the_client(live: tuple[Site, OpenAI]) -> None:
    site, client = live
    with pytest.raises(NotFoundError, match="no model 'gpt-4'") as missing:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(BadRequestError, match="does not do 'tools'"):
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    with pytest.raises(ConflictError):
        client.chat.completions.create(model="org/other:7b", messages=MESSAGES, extra_body={"memory": "cat"})
    with pytest.raises(RateLimitError) as busy:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "busy"}])
    assert busy.value.response.headers["retry-after-ms"] == "2000"
    site.engine.error, site.engine.error_after = StateMismatchError("It is of another model."), 1
    try:
        with pytest.raises(APIError, match="another model"):
            list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
        *events, last = client.responses.create(model="tiny", input="Who is it?", stream=True)
        assert (last.type, last.code, last.sequence_number) == ("error", "memory_mismatch", len(events))
        assert [event.sequence_number for event in events] == list(range(len(events)))
    finally:
        site.engine.error, site.engine.error_after = None, 1 << 30


def test_the_client_tries_again_where_the_server_is_busy(live: tuple[Site, OpenAI]) -> None:
    site, client = live
    site.engine.busy = 1
    answer = client.with_options(max_retries=2).chat.completions.create(model="tiny", messages=MESSAGES)
    assert answer.choices[0].message.content == " | Who is it?"
    assert site.engine.busy == 0


def test_an_answer_ends_when_its_reader_is_gone(live: tuple[Site, OpenAI]) -> None:
    site, client = live
    endless = [{"role": "user", "content": "endless"}]
    site.engine.delay, closed = 0.01, site.engine.closed
    try:
        stream = client.chat.completions.create(model="tiny", messages=endless, stream=True, max_tokens=1 << 19)
        next(iter(stream))
        stream.close()
        _wait(lambda: site.engine.closed == closed + 1)
        with pytest.raises(APIError, match="timed out"):
            client.with_options(timeout=0.2).chat.completions.create(model="tiny", messages=endless, max_tokens=1 << 19)
        _wait(lambda: site.engine.closed == closed + 2)
    finally:
        site.engine.delay = 0.0
    assert site.engine.running == 0


def _wait(happened: object) -> None:
    """Until it has happened; ten seconds at the most."""
    waited = threading.Event()
    for _ in range(500):
        if happened():  # type: ignore[operator]
            return
        waited.wait(0.02)
    raise AssertionError("it did not happen")
