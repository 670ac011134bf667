"""``--server``: the commands on the memories of a server, as on those of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from byheart import load
from byheart.model.backbone import Backbone
from tests.conftest import CAT, Run
from tests.serving.whole import serving_tiny

QUESTION = "What is the cat called?"


@pytest.fixture(scope="module")
def backbone(tiny_folder: Path) -> Backbone:
    return Backbone.open(str(tiny_folder), dtype="float32")


@pytest.fixture(scope="module")
def server(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with serving_tiny(backbone, tmp_path_factory.mktemp("home")) as found:
        yield found


@pytest.fixture(autouse=True)
def _environ(server: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYHEART_SERVER", server[0])
    monkeypatch.setenv("BYHEART_API_KEY", server[1])


def test_write_ask_and_chat(run: Run, home: Path, backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text(CAT, encoding="utf-8")
    ran = run("write", "cat", tmp_path / "cat.txt", "--method", "full")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Wrote cat.txt: 44 tokens in ")
    session = load(backbone, method="full")
    session.write(CAT)
    asked = run("ask", "cat", QUESTION, "--max-tokens", 8, "--json").json
    assert asked["answer"] == session.ask(QUESTION, max_tokens=8)
    assert (asked["tokens"], asked["model"], asked["method"]) == (8, "tiny", "full")
    ran = run("chat", "cat", "--max-tokens", 4, stdin=b"Who?\n")
    assert ran.code == 0
    assert " tokens of conversation in " in ran.err
    assert "the whole text" not in ran.err
    written = run("show", "cat", "--json").json["written"]
    assert [entry["source"] for entry in written] == ["cat.txt", "chat"]
    assert not home.exists()


def test_list_show_fork_versions_restore_and_forget(run: Run, server: tuple[str, str]) -> None:
    assert run("write", "one", "-o", "recent=16", "--method", "window", stdin=b"One.").code == 0
    assert "Copied 'one' to 'two'" in run("fork", "one", "two").out
    assert {"one", "two"} <= {entry["name"] for entry in run("list", "--json").json}
    listed = run("list").out
    assert "window" in listed
    assert "last written" not in listed
    shown = run("show", "one").out
    assert f"{server[0]}/v1/memories/mem_" in shown
    assert "standard input" in shown
    run("write", "one", stdin=b"Two.")
    assert "is as it was in version 1; that is version 3 now" in run("restore", "one", 1).out
    assert [version["number"] for version in run("versions", "one", "--json").json] == [3, 2, 1]
    assert run("forget", "two", "--yes").out == "Forgot 'two'.\n"
    assert "Forgot 0 memories about 'nobody'" in run("forget", "--subject", "nobody", "--yes").out
    run("write", "of-eva", "--about", "eva", "--method", "full", stdin=b"One.")
    assert "is about 'eva', not 'ann'" in run("write", "of-eva", "--about", "ann", stdin=b"Two.").err
    assert "Forgot 1 memories about 'eva'" in run("forget", "--subject", "eva", "--yes").out
    assert "'two'" in run("show", "two").err


def test_what_cannot_be_is_said_in_one_line(run: Run, server: tuple[str, str], tmp_path: Path) -> None:
    for arguments, message in {
        ("list", "--server", server[0], "--home", str(tmp_path)): "one of the two",
        ("list", "--server", "nonsense"): "A server is named like http://127.0.0.1:8321; it is 'nonsense'",
        ("ask", "cat", "?", "--dtype", "float32"): "A server has chosen its --dtype",
        ("ask", "cat", "?", "--dola", "high"): "A server does not decode with dola",
        ("ask", "cat", "?", "--model", "other"): "This server has no model 'other'",
    }.items():
        ran = run(*arguments)
        assert ran.code == 2, arguments
        assert message in ran.err
    fact = run("write", "fact", "--target", "Muck", stdin=b"The cat is called Muck.")
    assert "A server takes texts, not facts" in fact.err


def test_a_folder_that_is_named_comes_before_the_environment(run: Run, tmp_path: Path) -> None:
    assert run("list", "--home", tmp_path, "--json").json == []


def test_without_a_key_it_says_where_one_goes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BYHEART_API_KEY")
    ran = run("list")
    assert ran.code == 2
    assert "set $BYHEART_API_KEY" in ran.err
