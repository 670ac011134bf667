"""A server over an engine without a model, and a store of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from byheart.serving.http.accounts import Accounts, make_key
from byheart.serving.http.app import create_app
from byheart.serving.http.settings import Settings
from byheart.store.memories import Memories
from tests.serving.fakes import FakeEngine

ADDRESS = "http://127.0.0.1"
SETTINGS = Settings(body_bytes=20_000, text_bytes=60_000, state_bytes=60_000, body_seconds=1.0)


@dataclass
class Site:
    """A server in this process, its parts, and the keys of two tenants."""

    app: Starlette
    engine: FakeEngine
    memories: Memories
    keys: Path
    alice: str
    bob: str
    client: TestClient

    def ask(self, method: str, path: str, *, key: str | None = "", **more: Any) -> Any:
        """A request of Alice, or with another key, or with none."""
        key = self.alice if key == "" else key
        headers = {**({} if key is None else {"authorization": f"Bearer {key}"}), **more.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **more)

    def make(self, name: str, text: str = "", **more: Any) -> dict[str, Any]:
        """A new memory of Alice, with a text in it or without."""
        made: dict[str, Any] = self.ask("POST", "/v1/memories", json={"name": name, **more}).json()
        if text:
            self.ask("POST", f"/v1/memories/{name}/writes", json={"text": text}).raise_for_status()
        return made

    def chat(self, question: str, **more: Any) -> Any:
        """A question of one message."""
        return self.ask("POST", "/v1/chat/completions", json=chat(question, **more))


def chat(question: str, **more: Any) -> dict[str, Any]:
    """The body of a question."""
    return {"model": "tiny", "messages": [{"role": "user", "content": question}], **more}


def code(answer: Any) -> tuple[int, str]:
    """The status and the code of an error, whose shape is OpenAI's."""
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    return answer.status_code, error["code"]


Build = Callable[..., Site]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Make a server with its own store."""
    opened: list[Memories] = []

    def build(settings: Settings = SETTINGS, *, with_keys: bool = True) -> Site:
        home = tmp_path_factory.mktemp("server")
        keys = home / "keys.jsonl"
        alice, bob = make_key(keys, "alice", name="laptop"), make_key(keys, "bob")
        memories, engine = Memories.at(home), FakeEngine()
        opened.append(memories)
        app = create_app(engine, memories, Accounts(keys if with_keys else None), settings)
        client = TestClient(app, base_url=ADDRESS, raise_server_exceptions=True)
        return Site(app, engine, memories, keys, alice, bob, client)

    yield build
    for memories in opened:
        memories.close()


@pytest.fixture(scope="module")
def site(build: Build) -> Site:
    """A server that the tests of a file share."""
    return build()
