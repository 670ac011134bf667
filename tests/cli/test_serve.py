"""``byheart serve``: what it takes, what it refuses, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from byheart.cli import serve
from byheart.serving.http.accounts import Accounts
from byheart.serving.service import Choices
from tests.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--no-auth", "--host", "0.0.0.0"), "Without keys a server listens on loopback only, not on '0.0.0.0'"),
        (("--max-resident", "much"), "'much' is no number of bytes"),
        (("--max-decoded", "much"), "'much' is no number of bytes"),
        (("-m", "a=x", "-m", "a=y"), "no two of them have one name"),
        (("-m", "=x"), "Each --model is NAME=MODEL"),
        (("--cors", "example.org"), "An origin is like https://chat.example.org"),
        (("--host", "no such host"), "take another --host or --port"),
        (("--rate-limit", "-1"), "requests_per_minute must be 0 or more"),
    ],
)
def test_what_a_server_cannot_be_is_said(run: Run, arguments: tuple[str, ...], message: str) -> None:
    ended = run("serve", "--port", 0, *arguments)
    assert ended.code == 2
    assert message in ended.err


def test_memories_of_a_folder_are_of_the_model_that_is_served_from_it(tiny_folder: Path) -> None:
    """A name that is served stands for itself, whatever else is opened by it."""
    models = {
        "tiny": str(tiny_folder),
        "second": str(tiny_folder),
        "smollm2": "org/other",
        "x": "smollm2",
        "a/b": "c/d",
    }
    known = {str(tiny_folder.resolve()): "tiny", "org/other": "smollm2", "c/d": "a/b"}
    assert Choices(Path(), models=models).names == known


def test_a_key_is_made_for_a_tenant(run: Run, home: Path) -> None:
    ended = run("serve", "--add-key", "alice")
    assert ended.code == 0
    assert Accounts(home / "keys.jsonl").find(ended.out.strip()) == "alice"
    assert json.loads((home / "keys.jsonl").read_text())["tenant"] == "alice"
    assert "'a/b' cannot name a tenant" in run("serve", "--add-key", "a/b").err


def test_memories_in_files_are_not_hidden_by_a_new_catalogue(run: Run, cat: Path) -> None:
    ended = run("serve", "--port", 0)
    assert ended.code == 2
    assert "has 1 memories in files of their own" in ended.err
    assert "byheart migrate" in ended.err
    assert [path.name for path in cat.parent.iterdir()] == ["cat.safetensors"]


def test_without_the_extra_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = serve.importlib.util.find_spec

    def find(name: str, *more: Any) -> Any:
        return None if name == "starlette" else real(name, *more)

    monkeypatch.setattr(serve.importlib.util, "find_spec", find)
    ended = run("serve")
    assert ended.code == 2
    assert 'A server needs starlette: pip install "byheart[serve]"' in ended.err


def test_a_model_has_its_own_name_or_the_one_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    named = serve.parse_models(["smollm2", str(tmp_path / "folder"), "big=org/model"])
    assert named == {"smollm2": "smollm2", "folder": str(tmp_path / "folder"), "big": "org/model"}
