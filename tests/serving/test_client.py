"""The Python client against a whole server on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from byheart import Client, errors, load, open_state
from byheart.model.backbone import Backbone
from byheart.serving.client import refusals
from byheart.serving.client.sending import Sender
from byheart.serving.http import failures
from tests.conftest import CAT
from tests.serving.whole import serving_tiny

QUESTION = "What is the cat called?"


@pytest.fixture(scope="module")
def backbone(tiny_folder: Path) -> Backbone:
    return Backbone.open(str(tiny_folder), dtype="float32")


@pytest.fixture(scope="module")
def client(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    # The address with the end that the server's greeting has, for OpenAI's clients.
    home = tmp_path_factory.mktemp("home")
    with serving_tiny(backbone, home) as (address, key), Client(f"{address}/v1", key, retries=0) as client:
        client.memory("cat", method="full").write(CAT, source="cat.txt")
        yield client


# ---- what it does ----


def test_an_answer_is_that_of_a_session(client: Client, backbone: Backbone) -> None:
    session, cat = load(backbone, method="full"), client.memory("cat")
    session.write(CAT)
    sampled: dict[str, Any] = {"max_tokens": 8, "temperature": 2.0, "seed": 3}
    assert cat.ask(QUESTION, max_tokens=8) == session.ask(QUESTION, max_tokens=8)
    assert cat.ask(QUESTION, **sampled) == session.ask(QUESTION, **sampled)
    assert "".join(cat.stream(QUESTION, max_tokens=8)).strip() == cat.ask(QUESTION, max_tokens=8)
    assert cat.answer_tokens == 8


def test_a_header_is_of_one_version_whoever_writes_meanwhile(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, read_range = client.memory("busy", method="full"), Sender.read_range
    memory.write("One.")

    def reading(self: Sender, path: str, first: int, count: int) -> bytes:
        raw = read_range(self, path, first, count)
        if first == 0:
            client.memory("busy").write("Two. " * 20)
        return raw

    monkeypatch.setattr(Sender, "read_range", reading)
    assert len(memory.read_header().written) == 1
    monkeypatch.undo()
    assert len(memory.read_header().written) == 2


def test_a_write_says_what_it_wrote_and_how_far_it_is(client: Client) -> None:
    seen: list[tuple[int, int]] = []
    memory = client.memory("diary", method="window", recent=16, subject="ann")
    written = memory.write(CAT, source="one", progress=lambda done, total: seen.append((done, total)))
    assert (written.source, written.characters) == ("one", len(CAT))
    assert seen[-1] == (written.tokens, written.tokens)
    turn = memory.write_turn("Who?", "Muck.")
    assert turn.source == "chat"
    described = memory.describe()
    assert (described.version, described.tokens, described.subject) == (2, written.tokens + turn.tokens, "ann")
    assert described.options["recent"] == 16
    with pytest.raises(errors.UsageError, match="was made with recent 16, not 32"):
        client.memory("diary", recent=32).write(CAT)


def test_versions_restore_and_forks(client: Client) -> None:
    past = client.memory("past", method="full")
    first = past.write("One.")
    past.write("Two.")
    branch = past.fork("branch", version=1)
    assert branch.describe().tokens == first.tokens
    assert past.restore(1).number == 3
    assert [(version.number, version.operation) for version in past.versions()] == [
        (3, "restore"),
        (2, "write"),
        (1, "write"),
    ]
    with pytest.raises(errors.ConflictError, match="branch"):
        past.fork("branch")
    branch.forget()
    with pytest.raises(errors.MissingError, match="branch"):
        branch.ask(QUESTION)


def test_a_file_comes_out_and_goes_in(client: Client, backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "cat.safetensors"
    assert client.memory("cat").export(path) == path.stat().st_size
    assert open_state(path, model=backbone).header == client.memory("cat").read_header()
    assert client.import_("twin", path).operation == "import"
    twin = client.memory("twin")
    assert twin.ask(QUESTION, max_tokens=8) == client.memory("cat").ask(QUESTION, max_tokens=8)
    path.write_bytes(b"no state")
    with pytest.raises(errors.CorruptStateError):
        client.import_("broken", path)


def test_all_about_somebody_is_forgotten(client: Client) -> None:
    client.memory("eva-1", method="full", subject="eva").write("One.")
    client.memory("eva-1").fork("eva-2")
    gone = client.forget(subject="eva")
    assert (gone.memories, gone.versions) == (2, 2)
    assert not {"eva-1", "eva-2"} & {memory.name for memory in client.memories()}


def test_a_list_of_several_parts_is_given_whole(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    call, cat = client.sender.call, client.memory("cat")
    cat.fork("other")

    def one_at_a_time(*arguments: Any, **more: Any) -> dict[str, Any]:
        return call(*arguments, **{**more, "params": {**more["params"], "limit": 1}})

    monkeypatch.setattr(client.sender, "call", one_at_a_time)
    names = [memory.name for memory in client.memories()]
    assert len(names) == len(set(names))
    assert {"cat", "other"} <= set(names)


# ---- what it refuses ----


def test_errors_are_the_librarys(client: Client) -> None:
    cat = client.memory("cat")
    with pytest.raises(errors.MissingError, match="nobody"):
        client.memory("nobody").ask(QUESTION)
    with pytest.raises(errors.MissingError):
        cat.ask(QUESTION, version=9)
    with pytest.raises(errors.UsageError, match="contrast"):
        cat.ask(QUESTION, contrast=0.5)
    with pytest.raises(errors.UnknownNameError, match="max_tokens"):
        cat.ask(QUESTION, max_token=3)  # type: ignore[call-arg]
    with pytest.raises(errors.UsageError, match="temperature"):
        cat.ask(QUESTION, temperature=-1)
    with pytest.raises(errors.StoreError, match="cannot name a memory"):
        client.memory("../cat")
    with pytest.raises(errors.UsageError, match="Give api_key"):
        list(Client(client.url, "sk-byheart-wrong").memories())
    with pytest.raises(errors.InputError, match="half a character"):
        cat.write("\ud800 x")


def test_a_write_that_fails_leaves_no_memory(client: Client) -> None:
    for options in ({"method": "full"}, {"method": "window", "recent": -1}):
        with pytest.raises(errors.ByheartError):
            client.memory("none", **options).write("\ud800" if options["method"] == "full" else CAT)
    with pytest.raises(errors.InputError, match="the text is empty"):
        client.memory("none").write(" ")
    assert "none" not in {memory.name for memory in client.memories()}


def test_what_was_never_written_is_not_asked_but_begins_a_conversation(client: Client) -> None:
    client.sender.call("POST", "/v1/memories", {"name": "empty"})
    with pytest.raises(errors.InputError, match="Nothing has been written"):
        client.memory("empty").ask(QUESTION)
    for memory in (client.memory("empty"), client.memory("unmade")):
        list(memory.reply(QUESTION, max_tokens=4))
        assert memory.answer_tokens > 0


def test_every_code_of_the_server_is_an_error_of_the_library() -> None:
    for kind, _, code in failures.CODES:
        assert issubclass(kind, type(refusals.refused(code, "x").error)), code
