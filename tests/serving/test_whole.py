"""The whole server on a tiny model: what is asked over HTTP is what a session would answer."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import OpenAI

from byheart import load, open_state
from byheart.model.backbone import Backbone
from byheart.serving.engine import LocalEngine
from byheart.serving.http.accounts import Accounts, make_key
from byheart.serving.http.app import create_app
from byheart.store.memories import Memories
from tests.conftest import CAT, Run
from tests.samples import ROOT
from tests.serving.live import serving

QUESTION = [{"role": "user", "content": "What is the cat called?"}]


@pytest.fixture(scope="module")
def backbone(tiny_folder: Path) -> Backbone:
    return Backbone.open(str(tiny_folder), dtype="float32")


@pytest.fixture(scope="module")
def client(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    home = tmp_path_factory.mktemp("home")
    key, memories = make_key(home / "keys.jsonl", "alice"), Memories.at(home)
    engine = LocalEngine({"tiny": backbone}, max_resident=1 << 28)
    app = create_app(engine, memories, Accounts(home / "keys.jsonl"))
    with serving(app) as address, OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
        client.post("/memories", cast_to=object, body={"name": "cat", "method": "full"})
        client.post("/memories/cat/writes", cast_to=object, body={"text": CAT})
        yield client
    engine.close()
    memories.close()


def _ask(client: OpenAI, memory: str | None, **more: object) -> str:
    body = {"memory": memory} if memory else {}
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=8, extra_body=body, **more)
    return answer.choices[0].message.content


def test_an_answer_is_that_of_a_session(client: OpenAI, backbone: Backbone) -> None:
    session = load(backbone, method="full")
    session.write(CAT)
    assert _ask(client, "cat") == session.ask(QUESTION[0]["content"], max_tokens=8)
    assert _ask(client, "cat", seed=3, temperature=2.0) == session.ask(
        QUESTION[0]["content"], max_tokens=8, seed=3, temperature=2.0
    )


def test_a_stream_is_the_same_text_and_counts_the_slots(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny:cat", messages=QUESTION, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == _ask(client, "cat")
    slots = client.get("/memories/cat", cast_to=dict)["slots"]
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == slots > 0


def test_many_at_once_get_their_own_answers(client: OpenAI) -> None:
    for name in ("m1", "m2"):
        client.post("/memories", cast_to=object, body={"name": name, "method": "full"})
        client.post(f"/memories/{name}/writes", cast_to=object, body={"text": f"This is {name}. " * 3})
    names = ["cat", "m1", "m2", None]
    alone = {name: _ask(client, name) for name in names}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda name: _ask(client, name), names * 3))
    assert together == [alone[name] for name in names * 3]


def test_a_conversation_is_written_and_its_file_is_a_state(client: OpenAI, backbone: Backbone, tmp_path: Path) -> None:
    client.post("/memories", cast_to=object, body={"name": "talk", "method": "full"})
    for number in (1, 2):
        body = {"memory": {"id": "talk", "write": True}}
        answer = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=4, extra_body=body)
        assert answer.model_extra["memory"]["version"] == number
    (tmp_path / "talk.safetensors").write_bytes(client.get("/memories/talk/content", cast_to=bytes))
    session = open_state(tmp_path / "talk.safetensors", model=backbone)
    assert [entry.source for entry in session.header.written] == ["chat", "chat"]
    assert session.ask(QUESTION[0]["content"], max_tokens=8) == _ask(client, "talk")


@contextmanager
def served(home: Path, *arguments: str) -> Iterator[tuple[str, str]]:
    """Before: nothing listens. Inside: the address and the key that ``byheart serve`` shows. After: it has stopped."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "BYHEART_HOME": str(home)}
    command = [sys.executable, "-m", *arguments, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ, cwd=home) as ran:
        assert ran.stderr is not None
        lines = []
        while not lines or "Ready" not in lines[-1]:
            lines.append(ran.stderr.readline())
            assert lines[-1], lines
        address, key = (re.search(pattern, "".join(lines)) for pattern in (r"http://\S+", r"sk-byheart-\S+"))
        assert address
        assert key
        try:
            yield address[0], key[0]
        finally:
            ran.send_signal(signal.SIGTERM)
        assert ran.wait(20) == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's lines are curl's")
def test_what_the_readme_says_of_a_server_works_word_by_word(
    run: Run, home: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After its commands, which have left a memory there."""
    assert run("write", "warsaw", "--model", tiny_folder, stdin=CAT.encode()).code == 0
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text[text.index("## As a server") : text.index("## Which method?")]
    (shell, *curls), (python,) = (
        re.findall(r"```sh notest\n(.*?)```", part, re.DOTALL)[0].splitlines(),
        re.findall(r"```python notest\n(.*?)```", part, re.DOTALL),
    )
    _, migrate, serve = (shlex.split(words, comments=True) for words in shell.split("&&"))
    assert run(*migrate[1:]).code == 0
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "warsaw.txt").write_text(CAT, encoding="utf-8")
    with served(home, *serve, "--model", f"smollm2={tiny_folder}") as (address, key):
        for line in curls:
            command = line.replace("http://127.0.0.1:8321/v1", address).replace("$KEY", key)
            ran = subprocess.run([*shlex.split(command), "--fail", "--silent"], capture_output=True, cwd=tmp_path)
            assert ran.returncode == 0, ran.stdout
        python = python.replace("http://127.0.0.1:8321/v1", address).replace("sk-byheart-...", key)
        capsys.readouterr()
        exec(compile(python, "README.md", "exec"), {})
        assert capsys.readouterr().out.strip()
        with OpenAI(base_url=address, api_key=key) as client:
            assert {model.id for model in client.models.list()} == {"smollm2", "smollm2:warsaw", "smollm2:notes"}


@pytest.mark.slow
def test_the_command_shows_a_key_once_serves_and_stops(tiny_folder: Path, tmp_path: Path) -> None:
    with served(tmp_path, "byheart", "serve", "--model", f"tiny={tiny_folder}") as (address, key):
        assert key not in (tmp_path / "keys.jsonl").read_text()
        with OpenAI(base_url=address, api_key=key, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]
