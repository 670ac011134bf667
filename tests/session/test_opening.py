"""No code, no network and no other file because a state says so: what is opened is what the user named."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from byheart import load, open_state
from byheart.errors import StateError, StateMismatchError
from byheart.files import keep
from byheart.model.backbone import Backbone
from byheart.model.known import find_model
from byheart.protocol import state_file
from byheart.protocol.checkpoint import save_pretrained
from byheart.protocol.state import Header
from byheart.session.session import Session
from byheart.store.folder import Store
from tests.conftest import CAT, save_tiny, tiny_tokenizer

QUESTION = {"question": "Who?", "max_tokens": 8}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has opened anything yet."""
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> Path:
    """A state of a model that this user has opened."""
    session = load(str(folder), method="full")
    session.write(CAT)
    session.save(tmp_path / "cat.state")
    return tmp_path / "cat.state"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A hub that would notice a request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def rewrite(path: Path, **fields: Any) -> Path:
    """The same state with another header, hashed anew, as a stranger could."""
    state, header = state_file.load(path)
    state_file.save(path, state, replace(header, **fields))
    return path


def forget_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "cache").glob("*-opened/*.json"):
        path.unlink()


def test_a_model_that_was_opened_before_is_found_by_its_fingerprint(saved: Path, folder: Path) -> None:
    assert open_state(rewrite(saved, model="somewhere/else")).backbone.source == str(folder)


@pytest.mark.parametrize("name", ["attacker/model", "/tmp", ".", "", "\x1b]52;c;eA==\x07", "x" * 3000])
def test_what_a_file_names_is_not_opened(saved: Path, tmp_path: Path, hub: socket.socket, name: str) -> None:
    forget_opened(tmp_path)
    with pytest.raises(
        StateError, match=r"cat\.state' was made with model .*Say which model to open: model="
    ) as refused:
        open_state(rewrite(saved, model=name))
    assert str(refused.value).isprintable()
    with pytest.raises(BlockingIOError):
        hub.accept()


def test_a_model_that_is_gone_is_asked_for(saved: Path, folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(StateError, match="Say which model to open"):
        open_state(saved)
    assert open_state(saved, model=str(moved)).ask(**QUESTION) == open_state(saved).ask(**QUESTION)


def test_of_two_copies_the_one_that_is_left_is_opened(saved: Path, folder: Path, tmp_path: Path) -> None:
    copy = save_tiny(tmp_path / "copy")
    load(str(copy), method="full")
    assert open_state(saved).backbone.source == str(copy)
    copy.rename(tmp_path / "gone")
    assert open_state(saved).backbone.source == str(folder)


def test_a_folder_here_is_not_the_model_of_a_hub_that_has_its_name(
    saved: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_opened(tmp_path)
    fingerprint = state_file.load_header(saved).backbone
    keep("models-opened", fingerprint, ["hub/model"])
    assert find_model(fingerprint, "") == "hub/model"
    shutil.copytree(folder, tmp_path / "here" / "hub" / "model")
    monkeypatch.chdir(tmp_path / "here")
    assert find_model(fingerprint, "") is None
    with pytest.raises(StateError, match="Say which model to open"):
        open_state(saved)


def test_a_model_is_compared_before_the_state_is_used(saved: Path, folder: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(StateMismatchError, match="another model"):
        open_state(saved, model=str(other))
    edited = json.loads((folder / "config.json").read_text())
    edited["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    (folder / "config.json").write_text(json.dumps(edited))
    with pytest.raises(StateMismatchError, match="another model"):
        open_state(saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "none-such"}, "There is no method 'none-such'"),
        ({"options": {"chunk_tokens": 5, "model": "x"}}, "There is no option of full 'model'"),
        ({"options": {"name": "x"}}, "There is no option of full 'name'"),
        ({"options": {"chunk_tokens": "x"}}, "chunk_tokens of full must be a whole number"),
        ({"dtype": "int3"}, "precision 'int3'"),
    ],
)
def test_what_a_header_asks_for_in_vain_is_the_files_fault(saved: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(StateError, match=message):
        open_state(rewrite(saved, **fields))


def test_a_method_is_never_a_folder_because_a_file_says_so(
    saved: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load(str(folder), method="compressed-kv", tokens=2).method
    save_pretrained(trained, tmp_path / "trained")
    state, header = state_file.load(saved)
    state_file.save(saved, state, replace(header, method="trained"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StateError, match="There is no method 'trained'"):
        open_state(saved)


# ---- learned parts ----


@pytest.fixture
def trained(folder: Path, tmp_path: Path) -> Path:
    """A state whose learned parts are in a folder, which this user has opened."""
    session = load(str(folder), method="compressed-kv", tokens=2)
    save_pretrained(session.method, tmp_path / "trained")
    session = load(str(folder), method=str(tmp_path / "trained"))
    session.write(CAT)
    session.save(tmp_path / "trained.state")
    return tmp_path / "trained.state"


def test_learned_parts_are_found_by_their_fingerprint(trained: Path, tmp_path: Path) -> None:
    again = open_state(rewrite(trained, learned="/nowhere"))
    assert again.header.learned == str(tmp_path / "trained")


def test_a_folder_that_a_file_names_is_not_opened(trained: Path, folder: Path, tmp_path: Path) -> None:
    forget_opened(tmp_path)
    message = r"made with the learned parts in '.*trained', .* Say which folder to open: method="
    with pytest.raises(StateError, match=message):
        open_state(trained, model=str(folder))
    opened = open_state(trained, model=str(folder), method=str(tmp_path / "trained"))
    assert open_state(trained).ask(**QUESTION) == opened.ask(**QUESTION)


def test_a_store_opens_learned_parts_that_have_moved(trained: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    store.home.mkdir()
    trained.rename(store.path("cat"))
    moved = (tmp_path / "trained").rename(tmp_path / "moved")
    with pytest.raises(StateError, match="Say which folder to open"):
        store.open("cat")
    assert store.open("cat", method=str(moved)).header.learned == str(moved)


# ---- states of byheart 0.2 ----


def as_of_0_2(session: Session) -> Header:
    return replace(
        session.header,
        format=2,
        backbone=session.backbone.sampled_fingerprint,
        tokenizer=session.encoder.vocabulary_fingerprint,
        adapter=session.method.sampled_fingerprint,
    )


@pytest.fixture
def older(saved: Path) -> Path:
    session = open_state(saved)
    state_file.save(saved, session.state, as_of_0_2(session))
    return saved


def test_an_older_state_opens_with_a_notice(older: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        session = open_state(older)
    assert [record.message for record in caplog.records if "made by an older byheart" in record.message]
    caplog.clear()
    session.save(older)
    again = open_state(older)
    assert not caplog.records
    assert again.header.backbone == again.backbone.fingerprint


def test_an_older_state_of_parts_that_cannot_be_compared_says_so(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session, path = load(str(folder), method="compressed-kv", tokens=2), tmp_path / "kv.state"
    session.write(CAT)
    session.save(path)
    state_file.save(path, session.state, as_of_0_2(session))
    open_state(path)
    assert "Save it again to have all compared" in caplog.text
    caplog.clear()
    with torch.no_grad():
        session.method.get_parameter("embeddings").add_(1.0)
    state_file.save(path, session.state, as_of_0_2(session))
    open_state(path)
    assert "parts of its method that are not the ones here" in caplog.text
    assert "Save it again" not in caplog.text


def test_an_older_state_of_parts_that_nobody_has_is_refused(older: Path) -> None:
    with pytest.raises(StateMismatchError, match="other trained parts"):
        open_state(rewrite(older, adapter="0" * 32))


def test_an_older_state_of_another_model_is_refused(older: Path, tmp_path: Path) -> None:
    with pytest.raises(StateMismatchError, match="another model"):
        open_state(older, model=str(save_tiny(tmp_path / "other", seed=1)))


def changed(backbone: Backbone, change: Callable[[torch.Tensor], object]) -> Backbone:
    with torch.no_grad():
        change(backbone.model.get_parameter("model.layers.0.mlp.down_proj.weight"))
    return Backbone(backbone.model, source="changed")


def test_one_edited_weight_is_another_model(saved: Path, folder: Path) -> None:
    edited = changed(Backbone.open(str(folder)), lambda weight: weight[3, 5].add_(1.0))
    encoder = open_state(saved).encoder
    with pytest.raises(StateMismatchError, match="another model"):
        open_state(saved, model=edited, encoder=encoder)


def test_another_chat_template_is_another_tokenizer(saved: Path, folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", "<|end|> "), encoding="utf-8")
    with pytest.raises(StateMismatchError, match="another tokenizer"):
        open_state(saved)


def test_a_memory_that_is_made_without_a_system_prompt_is_opened_without_it(folder: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ '<|user|>Be brief.<|end|>' }}" + str(tokenizer.chat_template)
    tokenizer.save_pretrained(folder)
    whole, bare = (load(str(folder), method="full", system_prompt=kept) for kept in (True, False))
    said, unsaid = (session.encoder.decode(session.document("Hi")[0]) for session in (whole, bare))
    assert (said.count("Be brief."), unsaid.count("Be brief.")) == (1, 0)
    assert "Be brief." not in bare.encoder.decode(bare.encoder.question("Who?", continues=False))
    assert bare.header.options["opening"] == bare.encoder.template_tokens()["opening"]
    bare.write(CAT)
    bare.save(tmp_path / "bare.state")
    with pytest.raises(StateMismatchError, match="another tokenizer"):
        open_state(tmp_path / "bare.state")
    again = open_state(tmp_path / "bare.state", system_prompt=False)
    assert again.ask(**QUESTION) == bare.ask(**QUESTION)
