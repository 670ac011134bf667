"""The routes under /v1/memories."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from byheart.errors import UnavailableError
from byheart.protocol.state import Written
from byheart.serving.http.accounts import Accounts
from byheart.serving.http.app import create_app
from byheart.serving.http.settings import Settings
from byheart.store.memories import TenantMemories
from byheart.store.values import Version
from tests.serving.conftest import ADDRESS, SETTINGS, Build, Site, code
from tests.serving.fakes import HEADER, FakeEngine, read_text, save_text


def test_a_memory_is_made_written_read_renamed_and_forgotten(site: Site) -> None:
    made = site.make("first", metadata={"team": "a"}, subject="ann", expires_after={"seconds": 3600})
    assert (made["object"], made["version"], made["expires_after"]["anchor"]) == ("memory", 0, "last_active_at")
    write = site.ask("POST", "/v1/memories/first/writes", json={"text": "One.", "source": "a.txt", "if_version": 0})
    written = write.json()
    assert (written["object"], written["version"], written["entry"]["source"]) == ("memory.write", 1, "a.txt")
    read = site.ask("GET", f"/v1/memories/{made['id']}").json()
    assert (read["version"], read["slots"], read["name"]) == (1, 4, "first")
    renamed = site.ask("POST", "/v1/memories/first", json={"name": "second", "expires_after": None}).json()
    assert (renamed["name"], renamed["expires_after"], renamed["metadata"]) == ("second", None, {"team": "a"})
    assert code(site.ask("GET", "/v1/memories/first")) == (404, "memory_not_found")
    gone = site.ask("DELETE", "/v1/memories/second").json()
    assert (gone["object"], gone["deleted"], gone["versions"]) == ("memory.deleted", True, 1)
    assert site.engine.dropped[-1] == f"alice:{written['sha256']}"
    assert code(site.ask("DELETE", "/v1/memories/second")) == (404, "memory_not_found")


def test_texts_come_as_json_messages_plain_text_and_files(site: Site) -> None:
    site.make("many")
    path = "/v1/memories/many/writes"
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "R"},
    ]
    assert site.ask("POST", path, json={"messages": messages}).json()["entry"]["texts"] == 2
    plain = {"content-type": "text/plain; charset=utf-8"}
    answer = site.ask("POST", f"{path}?source=notes&if_version=1", content="Zwölf\r\n".encode(), headers=plain)
    assert answer.json()["entry"]["source"] == "notes"
    files = [("file", ("a.txt", "eins", "text/plain")), ("file", ("ä.md", "zwei", "text/markdown"))]
    answer = site.ask("POST", path, files=files, data={"if_version": "2"}).json()
    assert (answer["version"], answer["entry"]["texts"]) == (3, 2)
    assert site.chat("?", memory="many").json()["choices"][0]["message"]["content"] == "QARZwölf\neinszwei | ?"
    listed = site.ask("GET", path).json()
    assert [entry["version"] for entry in listed["data"]] == [3, 2, 1]
    assert "Zwölf" not in json.dumps(listed)


def test_progress_is_told_while_a_text_is_written(site: Site) -> None:
    site.make("slow")
    text = site.ask("POST", "/v1/memories/slow/writes", json={"text": "One.", "stream": True}).text
    events = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    assert json.loads(events[0]) == {"object": "memory.write.progress", "done": 1, "total": 1}
    assert json.loads(events[-2])["version"] == 1
    assert events[-1] == "[DONE]"
    broken = site.ask("POST", "/v1/memories/slow/writes", json={"text": " ", "stream": True}).text
    assert '"code":"invalid_text"' in broken


def test_a_write_with_another_version_is_a_conflict_and_one_sent_twice_is_done_once(site: Site) -> None:
    site.make("once", "One.")
    path = "/v1/memories/once/writes"
    assert code(site.ask("POST", path, json={"text": "x", "if_version": 0})) == (409, "memory_version_conflict")
    sent = {"json": {"text": "Two.", "if_version": 1}, "headers": {"idempotency-key": "k"}}
    first, second = (site.ask("POST", path, **sent).json() for _ in range(2))
    assert first == second
    assert site.ask("GET", "/v1/memories/once").json()["version"] == 2
    other = site.ask("POST", path, **{**sent, "json": {"text": "Three."}})
    assert code(other) == (422, "idempotency_key_reused")


def test_a_request_that_came_to_another_server_first_is_done_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.make("twice", "One.")
    path = "/v1/memories/twice/writes"
    sent: dict[str, Any] = {"json": {"text": "Two.", "if_version": 1}, "headers": {"idempotency-key": "other"}}
    app = create_app(FakeEngine(), site.memories, Accounts(site.keys), SETTINGS)
    other = replace(site, app=app, client=TestClient(app, base_url=ADDRESS))
    replay, found = TenantMemories.replay, list[Any]()

    def replay_late(self: TenantMemories, key: str) -> Version | None:
        """The other server commits just after this one has looked."""
        monkeypatch.setattr(TenantMemories, "replay", replay)
        found.append(other.ask("POST", path, **sent).json())
        return None

    monkeypatch.setattr(TenantMemories, "replay", replay_late)
    answer = site.ask("POST", path, **sent)
    assert (answer.status_code, answer.json()) == (200, found[0])
    assert site.ask("GET", "/v1/memories/twice").json()["version"] == 2


def test_what_was_deleted_is_not_ready_any_more_also_where_deleting_fails_half_way(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.make("half", "Half of it.", subject="eva")
    sha256 = site.ask("GET", "/v1/memories/half/versions").json()["data"][0]["sha256"]
    site.make("other", "The rest.")
    kept = site.ask("GET", "/v1/memories/other/versions").json()["data"][0]["sha256"]
    monkeypatch.setattr(site.engine, "residents", [f"alice:{sha256}", f"alice:{kept}"])
    purge = site.memories.catalogue.purge

    def fail() -> None:
        monkeypatch.setattr(site.memories.catalogue, "purge", purge)
        raise UnavailableError("Somebody reads all the time.")

    monkeypatch.setattr(site.memories.catalogue, "purge", fail)
    assert site.ask("DELETE", "/v1/memories?subject=eva").status_code == 503
    assert f"alice:{sha256}" in site.engine.dropped
    assert f"alice:{kept}" not in site.engine.dropped
    assert site.ask("DELETE", "/v1/memories?subject=eva").json()["deleted"] is True


def test_files_on_their_way_have_a_bound_and_tell_of_so_many_texts(build: Build, tmp_path: Path) -> None:
    site = build(Settings(uploaded_bytes=1_000))
    save_text(tmp_path / "x", "One." * 300)
    put = {"content": (tmp_path / "x").read_bytes(), "headers": {"content-type": "application/octet-stream"}}
    assert code(site.ask("PUT", "/v1/memories/up/content", **put)) == (429, "server_busy")
    assert list(site.memories.scratch.glob("import-*")) == []
    site = build(Settings())
    assert site.ask("PUT", "/v1/memories/up/content", **put).status_code == 201
    written = [Written("a", "2026-01-01T00:00:00+00:00", 1, 1)] * 10_001
    save_text(tmp_path / "y", "One.", replace(HEADER, written=written))
    put["content"] = (tmp_path / "y").read_bytes()
    answer = site.ask("PUT", "/v1/memories/many/content", **put)
    assert code(answer) == (400, "invalid_value")
    assert "tells of 10,001 texts" in answer.json()["error"]["message"]


def test_a_memory_is_deleted_only_at_the_version_that_is_named(site: Site) -> None:
    site.make("dated", "One.")
    assert code(site.ask("DELETE", "/v1/memories/dated?if_version=0")) == (409, "memory_version_conflict")
    assert site.ask("DELETE", "/v1/memories/dated?if_version=1").json()["deleted"] is True


def test_an_import_that_comes_too_late_leaves_what_another_has_written(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_text(tmp_path / "x", "One.")
    alice = site.memories.of("alice")
    put = site.memories.objects.put

    def put_late(key: str, file: Path) -> None:
        monkeypatch.setattr(site.memories.objects, "put", put)
        site.ask("POST", "/v1/memories/raced/writes", json={"text": "Two."}).raise_for_status()
        put(key, file)

    monkeypatch.setattr(site.memories.objects, "put", put_late)
    answer = site.ask("PUT", "/v1/memories/raced/content", content=(tmp_path / "x").read_bytes())
    assert code(answer) == (409, "memory_version_conflict")
    assert read_text(alice.fetch(alice.version("raced"))) == "Two."


def test_bytes_that_cannot_be_deleted_yet_are_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # A text of its own: an equal state of another memory would keep the object.
    site.make("stuck", "Stuck.")
    key = site.memories.of("alice").version("stuck").key

    def fail(key: str) -> None:
        raise UnavailableError("The bucket does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(site.memories.objects, "delete", fail)
        gone = site.ask("DELETE", "/v1/memories/stuck").json()
    assert (gone["deleted"], gone["memories"], gone["pending"]) == (False, 1, 1)
    assert key in site.engine.dropped
    assert site.memories.gone([key]) == [key]
    assert site.memories.sweep().objects == 1


def test_versions_are_restored_and_deleted_and_a_fork_is_apart(site: Site) -> None:
    site.make("past", "One.")
    site.ask("POST", "/v1/memories/past/writes", json={"text": "Two."})
    fork = site.ask("POST", "/v1/memories/past/fork", json={"name": "branch", "version": 1})
    assert fork.status_code == 201
    assert fork.json()["parent"]["version"] == 1
    assert code(site.ask("POST", "/v1/memories/past/fork", json={"name": "branch"})) == (409, "memory_exists")
    restored = site.ask("POST", "/v1/memories/past/versions/1/restore").json()
    assert (restored["version"], restored["operation"]) == (3, "restore")
    assert site.ask("DELETE", "/v1/memories/past/versions/2").json()["versions"] == 1
    assert code(site.ask("DELETE", "/v1/memories/past/versions/2"))[0] == 404
    assert code(site.ask("DELETE", "/v1/memories/past/versions/x"))[0] == 404
    versions = site.ask("GET", "/v1/memories/past/versions?limit=1").json()
    assert (versions["has_more"], versions["last_id"]) == (True, "3")
    older = site.ask("GET", "/v1/memories/past/versions?after=3").json()
    assert [version["version"] for version in older["data"]] == [1]
    assert "One. | ?" in site.chat("?", memory="branch").text


def test_a_list_goes_on_where_its_memories_are_deleted_meanwhile(site: Site) -> None:
    for number in range(5):
        site.make(f"going{number}", metadata={"set": "going"})
    names, after = [], {}
    while True:
        page = site.ask("GET", "/v1/memories", params={"metadata[set]": "going", "limit": 2, **after}).json()
        for memory in page["data"]:
            assert site.ask("DELETE", f"/v1/memories/{memory['id']}").status_code == 200
        names += [memory["name"] for memory in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert names == [f"going{number}" for number in reversed(range(5))]


def test_memories_are_listed_in_parts_and_by_what_they_are_about(site: Site) -> None:
    for name in ("l1", "l2", "l3"):
        site.make(name, metadata={"set": "l", "name": name})
    first = site.ask("GET", "/v1/memories", params={"metadata[set]": "l", "limit": 2, "order": "asc"}).json()
    assert ([each["name"] for each in first["data"]], first["has_more"]) == (["l1", "l2"], True)
    rest = site.ask(
        "GET", "/v1/memories", params={"metadata[set]": "l", "after": first["last_id"], "order": "asc"}
    ).json()
    assert [each["name"] for each in rest["data"]] == ["l3"]
    assert [each["name"] for each in site.ask("GET", "/v1/memories?name=l2").json()["data"]] == ["l2"]
    assert code(site.ask("GET", "/v1/memories?limit=0")) == (400, "invalid_value")
    assert code(site.ask("GET", "/v1/memories?limt=1")) == (400, "unknown_field")


def test_everything_about_a_subject_goes_at_once(site: Site) -> None:
    for name in ("s1", "s2"):
        site.make(name, "Secret.", subject="carol")
    site.ask("POST", "/v1/memories/s1/fork", json={"name": "s3"})
    gone = site.ask("DELETE", "/v1/memories?subject=carol").json()
    assert (gone["memories"], gone["versions"] >= 3) == (3, True)
    assert code(site.ask("GET", "/v1/memories/s3")) == (404, "memory_not_found")
    assert code(site.ask("DELETE", "/v1/memories")) == (400, "missing_field")
    assert code(site.ask("DELETE", "/v1/memories?subject=")) == (400, "invalid_value")
    audit = site.ask("GET", "/v1/audit?limit=5").json()["data"]
    assert {"number", "at", "action", "counts"} <= audit[0].keys()
    assert "carol" not in json.dumps(audit)


def test_a_memory_leaves_as_a_file_and_comes_back(site: Site, tmp_path: Path) -> None:
    site.make("out", "One.")
    content = site.ask("GET", "/v1/memories/out/content")
    assert content.headers["etag"] == f'"{hashlib.sha256(content.content).hexdigest()}"'
    part = site.ask("GET", "/v1/memories/out/content", headers={"range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, content.content[:8])
    for wrong, status in [
        ("theirs", 400),
        ("bytes=", 400),
        ("bytes=5-2", 400),
        ("bytes=9999999-", 416),
        ("bytes=-0", 416),
    ]:
        refused = site.ask("GET", "/v1/memories/out/content", headers={"range": wrong})
        assert (refused.status_code, code(refused)) == (status, (status, "invalid_value"))
    parts = site.ask("GET", "/v1/memories/out/content", headers={"range": "bytes=0-1, -2,9-"})
    assert parts.status_code == 206
    same = site.ask("GET", "/v1/memories/out/content", headers={"if-none-match": content.headers["etag"]})
    assert same.status_code == 304
    back = site.ask("PUT", "/v1/memories/back/content?subject=ann", content=content.content)
    assert (back.status_code, back.json()["operation"]) == (201, "import")
    assert "One. | ?" in site.chat("?", memory="back").text
    assert site.ask("GET", "/v1/memories/back").json()["subject"] == "ann"
    again = site.ask("PUT", "/v1/memories/back/content", content=content.content)
    assert (again.status_code, again.json()["version"]) == (200, 2)
    refused = site.ask("PUT", "/v1/memories/back/content", content=content.content, headers={"if-none-match": "*"})
    assert code(refused) == (412, "memory_exists")
    assert code(site.ask("GET", f"/v1/memories/{site.make('empty')['id']}/content"))[0] == 404


@pytest.mark.parametrize("kind", ["cut", "changed", "text", "empty", "foreign", "large"])
def test_a_file_that_is_no_memory_of_this_model_is_refused_and_leaves_nothing(
    site: Site, tmp_path: Path, kind: str
) -> None:
    save_text(
        tmp_path / "x",
        "One.",
        replace(HEADER, backbone="fingerprint" if kind != "foreign" else "other-model"),
    )
    raw = (tmp_path / "x").read_bytes()
    raw = {"cut": raw[:-2], "changed": raw[:-1] + b"!", "text": b"One.", "empty": b"", "large": raw * 200}.get(
        kind, raw
    )
    answer = site.ask("PUT", f"/v1/memories/bad-{kind}/content", content=raw)
    expected = {"foreign": (409, "memory_mismatch"), "large": (413, "body_too_large")}
    assert code(answer) == expected.get(kind, (422, "memory_damaged"))
    assert code(site.ask("GET", f"/v1/memories/bad-{kind}"))[0] == 404
    assert list(site.memories.scratch.glob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"name": "a/b"}, "invalid_memory"),
        ({"name": "a\nb"}, "invalid_value"),
        ({"name": 5}, "invalid_value"),
        ({"name": "ok1", "colour": "red"}, "unknown_field"),
        ({"name": "ok1", "method": "/etc/passwd"}, "invalid_value"),
        ({"name": "ok1", "method": "fulll"}, "unknown_name"),
        ({"name": "ok1", "method": "full", "options": {"x": 1}}, "unknown_name"),
        ({"name": "ok1", "options": {"bits": 4}}, "invalid_value"),
        ({"name": "ok1", "metadata": {"k": "v" * 513}}, "invalid_value"),
        ({"name": "ok1", "metadata": {str(n): "v" for n in range(17)}}, "invalid_value"),
        ({"name": "ok1", "expires_after": {"seconds": 0}}, "invalid_value"),
        ({"name": "ok1", "model": "tiny:cat"}, "invalid_value"),
    ],
)
def test_a_memory_that_cannot_be_made_is_refused(site: Site, body: dict[str, Any], expected: str) -> None:
    assert code(site.ask("POST", "/v1/memories", json=body)) == (400, expected)
    assert code(site.ask("GET", "/v1/memories/ok1"))[0] == 404


def test_a_method_that_may_take_for_ever_is_made_by_nobody_unless_it_is_allowed(build: Build, tmp_path: Path) -> None:
    careful, trusting = build(), build(replace(SETTINGS, methods=(*SETTINGS.methods, "cartridge")))
    body = {"name": "c", "method": "cartridge", "options": {"steps": 1_000_000}}
    assert code(careful.ask("POST", "/v1/memories", json=body)) == (403, "method_not_served")
    save_text(tmp_path / "c", "One.", replace(HEADER, method="cartridge"))
    imported = careful.ask("PUT", "/v1/memories/c/content", content=(tmp_path / "c").read_bytes())
    assert code(imported) == (403, "method_not_served")
    assert trusting.ask("POST", "/v1/memories", json=body).status_code == 201


def test_a_name_belongs_to_one_memory_of_a_tenant(site: Site) -> None:
    site.make("taken")
    assert code(site.ask("POST", "/v1/memories", json={"name": "taken"})) == (409, "memory_exists")
    assert site.ask("POST", "/v1/memories", json={"name": "taken"}, key=site.bob).status_code == 201


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"json": {"text": "a", "messages": [{"role": "user", "content": "b"}]}}, (400, "invalid_value")),
        ({"json": {}}, (400, "invalid_value")),
        ({"json": {"text": "  "}}, (400, "invalid_text")),
        ({"json": {"text": "a", "if_version": "1"}}, (400, "invalid_value")),
        ({"content": b"\xff\xfe", "headers": {"content-type": "text/plain"}}, (400, "invalid_text")),
        ({"content": b"a", "headers": {"content-type": "image/png"}}, (415, "unsupported_media_type")),
        ({"content": b"a" * 70_000, "headers": {"content-type": "text/plain"}}, (413, "body_too_large")),
        (
            {"content": b"--x\r\n\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            (400, "invalid_form"),
        ),
        ({"content": b"a", "headers": {"content-type": "multipart/form-data"}}, (400, "invalid_form")),
        ({"files": [("file", ("a.bin", b"\xff\x00"))]}, (400, "invalid_text")),
        ({"files": [("source", (None, b"x"))]}, (400, "missing_field")),
        ({"files": [("colour", (None, b"x"))]}, (400, "unknown_field")),
    ],
)
def test_a_write_that_cannot_be_read_is_refused(site: Site, sent: dict[str, Any], expected: tuple[int, str]) -> None:
    if site.ask("GET", "/v1/memories/strict").status_code == 404:
        site.make("strict")
    assert code(site.ask("POST", "/v1/memories/strict/writes", **sent)) == expected
    assert site.ask("GET", "/v1/memories/strict").json()["version"] == 0


def test_what_another_server_has_deleted_leaves_this_one_s_memory(build: Build) -> None:
    site = build()
    site.make("cat", "The cat is called Muck.")
    kept = site.memories.of("alice").versions("cat").data[0].key
    site.engine.residents = [kept, f"alice:{'0' * 64}"]
    with site.client:
        while not site.engine.dropped:
            time.sleep(0.005)
    assert site.engine.dropped == [f"alice:{'0' * 64}"]
