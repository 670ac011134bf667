"""Who may ask a server, from where, how much, and what it tells of others: its part of the threat model."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from byheart.serving.http.accounts import Accounts, make_key
from byheart.serving.http.settings import Settings
from byheart.store.values import Quota
from tests.serving.conftest import SETTINGS, Build, Site, chat, code
from tests.serving.fakes import MODEL

ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/memories"),
    ("DELETE", "/v1/memories?subject=a"),
    ("PUT", "/v1/memories/a/content"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("key", [None, "", "sk-byheart-wrong", "x" * 5000, "é"])
def test_a_request_without_a_valid_key_is_refused_before_its_body_is_read(
    site: Site, method: str, path: str, key: str | None
) -> None:
    sent = {} if key is None else {"authorization": f"Bearer {key}".encode()}
    answer = site.client.request(method, path, headers=sent, content=b"{" if method == "POST" else None)
    assert code(answer) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_is_revoked_and_another_made_without_a_restart(build: Build) -> None:
    site = build()
    assert site.ask("GET", "/v1/models").status_code == 200
    lines = site.keys.read_text().splitlines()
    assert site.alice not in site.keys.read_text()
    assert site.keys.stat().st_mode & 0o077 == 0
    site.keys.write_text("\n".join(line for line in lines if "alice" not in line))
    assert code(site.ask("GET", "/v1/models")) == (401, "invalid_api_key")
    assert site.ask("GET", "/v1/models", key=site.bob).status_code == 200
    carol = make_key(site.keys, "carol")
    assert site.ask("GET", "/v1/models", key=carol).status_code == 200
    site.keys.unlink()
    assert code(site.ask("GET", "/v1/models", key=carol)) == (401, "invalid_api_key")


def test_a_line_that_is_no_key_lets_nobody_in_and_hides_no_other(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    site = build()
    bad = [
        '{"tenant": "a/b", "sha256": "%s"}' % ("0" * 64),
        '{"tenant": "a"}',
        "[]",
        "x",
        '{"sha256": 5, "tenant": "a"}',
    ]
    site.keys.write_text("\n".join([*bad, site.keys.read_text()]))
    assert Accounts(site.keys).find(site.bob) == "bob"
    assert caplog.text.count("of the keys is not like") == len(bad)


def test_another_tenant_sees_changes_and_reads_nothing(site: Site) -> None:
    made = site.make("private", "The secret is Muck.")
    site.ask("POST", "/v1/memories/private/writes", json={"text": "More."})
    theirs: list[tuple[str, str, dict[str, Any]]] = []
    for name in ("private", made["id"]):
        path = f"/v1/memories/{name}"
        theirs += [
            ("GET", path, {}),
            ("POST", path, {"json": {"name": "mine"}}),
            ("DELETE", path, {}),
            ("POST", f"{path}/writes", {"json": {"text": "x"}}),
            ("GET", f"{path}/writes", {}),
            ("POST", f"{path}/fork", {"json": {"name": "mine"}}),
            ("GET", f"{path}/versions", {}),
            ("POST", f"{path}/versions/1/restore", {}),
            ("DELETE", f"{path}/versions/1", {}),
            ("GET", f"{path}/content", {}),
            ("POST", "/v1/chat/completions", {"json": chat("Who?", memory=name)}),
            ("POST", "/v1/chat/completions", {"json": chat("Who?", model=f"{MODEL}:{name}")}),
            ("POST", "/v1/chat/completions", {"json": chat("Who?"), "headers": {"x-byheart-memory": name}}),
        ]
    for method, path, more in theirs:
        answer = site.ask(method, path, key=site.bob, **more)
        assert code(answer) == (404, "memory_not_found"), (method, path)
        assert "Muck" not in answer.text
    assert "private" not in site.ask("GET", "/v1/models", key=site.bob).text
    assert site.ask("GET", "/v1/memories", key=site.bob).json()["data"] == []
    assert site.ask("DELETE", "/v1/memories?subject=x", key=site.bob).json()["memories"] == 0
    assert site.ask("GET", "/v1/memories/private").json()["version"] == 2


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"host": "evil.example"}, "host_not_allowed"),
        ({"host": "localhost.evil.example:80"}, "host_not_allowed"),
        ({"host": ""}, "host_not_allowed"),
        ({"origin": "https://evil.example"}, "origin_not_allowed"),
        ({"origin": "null"}, "origin_not_allowed"),
        ({"origin": "http://127.0.0.1:81"}, "origin_not_allowed"),
    ],
)
def test_a_web_page_elsewhere_reaches_nothing(build: Build, headers: dict[str, str], expected: str) -> None:
    site = build(with_keys=False)
    assert code(site.client.get("/v1/models", headers=headers)) == (403, expected)
    assert site.client.get("/v1/models", headers={"origin": "http://127.0.0.1"}).status_code == 200
    assert site.client.get("/v1/models", headers={"host": "LOCALHOST:8321"}).status_code == 200
    plain = {"content-type": "text/plain"}
    assert code(site.client.post("/v1/chat/completions", content=b"{}", headers=plain)) == (
        415,
        "unsupported_media_type",
    )


def test_a_web_page_that_is_named_may_use_the_server_and_no_other(build: Build) -> None:
    site = build(Settings(cors=("https://chat.example",)))
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = site.client.options("/v1/models", headers={"origin": "https://chat.example", **asked})
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
    refused = site.client.options("/v1/models", headers={"origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in refused.headers
    page = site.ask("GET", "/v1/models", headers={"origin": "https://chat.example"})
    assert page.headers["access-control-allow-origin"] == "https://chat.example"


def test_a_tenant_has_no_more_than_its_quota(build: Build) -> None:
    site = build(Settings(quota=Quota(memories=1)))
    site.make("first")
    assert code(site.ask("POST", "/v1/memories", json={"name": "second"})) == (403, "quota_exceeded")
    assert site.ask("GET", "/v1/usage").json()["quota"] == {"memories": 1, "bytes": None}
    assert site.ask("POST", "/v1/memories", json={"name": "first"}, key=site.bob).status_code == 201


def test_what_is_resident_belongs_to_a_tenant(site: Site) -> None:
    for key in (site.alice, site.bob):
        site.ask("POST", "/v1/memories", key=key, json={"name": "same"})
        site.ask("POST", "/v1/memories/same/writes", key=key, json={"text": "The same."})
        site.ask("POST", "/v1/chat/completions", key=key, json=chat("Who?", memory="same"))
    tenants = [job.memory.key.partition(":")[0] for job in site.engine.asked[-2:] if job.memory]
    assert tenants == ["alice", "bob"]


def test_too_many_requests_of_a_tenant_wait_and_others_do_not(build: Build) -> None:
    site = build(Settings(requests_per_minute=1))
    assert site.ask("GET", "/v1/models").status_code == 200
    refused = site.ask("GET", "/v1/models")
    assert code(refused) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert site.ask("GET", "/v1/models", key=site.bob).status_code == 200


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", (400, "invalid_json")),
        (b"[]", (400, "invalid_json")),
        (b'{"messages": ', (400, "invalid_json")),
        (b'{"model": "tiny", "model": "tiny"}', (400, "invalid_json")),
        (b'{"temperature": NaN}', (400, "invalid_json")),
        (b'{"temperature": 1e999}', (400, "invalid_json")),
        (b'{"a": ' + b"[" * 9000 + b"]" * 9000 + b"}", (400, "invalid_json")),
        (b'{"a": "\\ud800"}', (400, "invalid_json")),
        (b'{"a": "\xff"}', (400, "invalid_json")),
        (b'{"a": "' + b"a" * 30_000 + b'"}', (413, "body_too_large")),
        (b'{"seed": ' + b"9" * 10_000 + b"}", (400, "invalid_json")),
    ],
    ids=["empty", "list", "cut", "twice", "nan", "infinite", "deep", "half", "latin", "large", "digits"],
)
def test_a_body_that_is_no_question_is_refused(site: Site, raw: bytes, expected: tuple[int, str]) -> None:
    answer = site.ask("POST", "/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert code(answer) == expected


def test_bodies_together_have_a_bound_and_are_let_go_of(build: Build) -> None:
    site = build(Settings(held_bytes=2_000))
    assert code(site.chat("x" * 2_000)) == (429, "server_busy")
    assert site.chat("x").status_code == 200
    assert site.chat("x" * 800).status_code == 200
    assert site.chat("x" * 800).status_code == 200


@pytest.mark.parametrize("length", [b"-1", b"x", b"1e3", b"9" * 40])
def test_a_stated_length_that_is_none_is_refused(site: Site, length: bytes) -> None:
    headers = {"content-length": length, "content-type": "application/json"}
    answer = site.ask("POST", "/v1/chat/completions", content=iter([b"{}"]), headers=headers)
    assert code(answer) == (413, "body_too_large")


def test_the_log_says_what_was_done_and_nothing_that_was_said(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.make("logged", "A secret text.")
    with caplog.at_level(logging.INFO):
        answer = site.chat("A secret question?", memory="logged")
        site.ask("GET", "/v1/memories/logged")
    assert f"{answer.headers['x-request-id']} POST /v1/chat/completions 200" in caplog.text
    assert "GET /v1/memories/{memory} 200" in caplog.text
    said = " ".join(record.getMessage() for record in caplog.records if record.name.startswith("byheart"))
    for secret in ("secret", "logged", site.alice):
        assert secret not in said
    named = site.chat("x").headers["x-request-id"]
    assert named.startswith("req_")
    asked = site.ask("GET", "/v1/models", headers={"x-request-id": "abc-1"})
    assert asked.headers["x-request-id"] == "abc-1"
    forged = site.ask("GET", "/v1/models", headers={"x-request-id": "a b\x1b"})
    assert forged.headers["x-request-id"].startswith("req_")


def test_what_is_counted_names_no_memory_and_no_tenant(site: Site) -> None:
    site.make("counted", "One.")
    site.chat("Who?", memory="counted")
    told = site.ask("GET", "/metrics").text
    for name in ("num_requests_running", "time_to_first_token_seconds_bucket", "generation_tokens_total"):
        assert f"byheart:{name}" in told
    assert 'byheart:request_success_total{finished_reason="stop"}' in told
    assert 'byheart:http_requests_total{route="/v1/chat/completions",status="200"}' in told
    for secret in ("counted", "alice"):
        assert secret not in told


def test_what_needs_no_key_tells_nothing(site: Site) -> None:
    assert site.ask("GET", "/health", key=None).json()["status"] == "ok"
    assert site.ask("GET", "/ready", key=None).json() == {"status": "ready"}
    described = site.ask("GET", "/openapi.json", key=None).json()
    assert {"/v1/chat/completions", "/v1/memories/{memory}/writes", "/v1/models/{model}"} <= described["paths"].keys()
    assert described["paths"]["/v1/memories"]["post"]["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/NewMemory"
    }
    assert code(site.ask("GET", "/v2", key=None)) == (404, "route_not_found")
    assert code(site.ask("PUT", "/v1/models", key=None)) == (405, "method_not_allowed")


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fkeys", "a%00b", "%ff", "mem_", "x" * 5000, "%F0%9F%90%88", "a%0ab"])
def test_a_name_in_a_path_reaches_no_file(site: Site, name: str) -> None:
    for path in (f"/v1/memories/{name}", f"/v1/memories/{name}/content", f"/v1/memories/{name}/versions"):
        answer = site.ask("GET", path)
        assert answer.status_code in (400, 404)
        assert site.keys.read_text()[:10] not in answer.text
    assert site.ask("PUT", f"/v1/memories/{name}/content", content=b"x").status_code in (400, 404, 405, 422)


def test_settings_that_make_no_sense_are_errors() -> None:
    with pytest.raises(Exception, match="body_bytes must be above 0"):
        Settings(body_bytes=0)
    with pytest.raises(Exception, match="An origin is like"):
        Settings(cors=("example.org",))
    assert SETTINGS.cors == ()
