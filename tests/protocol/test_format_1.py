"""What byheart 0.1 wrote opens and answers as it did: states of format 1, and folders of learned parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from byheart.errors import CheckpointError, CorruptStateError, StateMismatchError
from byheart.generation import Decoding, generate
from byheart.methods import BUILT_IN, build
from byheart.model.backbone import Backbone
from byheart.protocol import format_1
from byheart.protocol.checkpoint import is_learned, load_pretrained, read_card, save_pretrained
from byheart.protocol.state import FORMAT
from byheart.protocol.state_file import load, load_header
from byheart.session import Session, load as load_session, open_state
from tests.samples import stir, tokens, written

HERE = Path(__file__).parent / "format_1"
MODEL = HERE / "model"
ANSWERS: dict[str, list[int]] = json.loads((HERE / "answers.json").read_text())
STATES, LEARNED = sorted(ANSWERS), sorted(folder.name for folder in (HERE / "learned").iterdir())
# What the options of 0.1 are called now, with the values in these files.
RENAMED: dict[str, dict[str, Any]] = {
    "latent-pool": {"slots": 4},
    "key-norm": {"slots": 16},
    "attention-score": {"slots": 16},
    "cartridge": {"slots": 8},
    "compressed-kv": {"first_slot": True},
}


def open_old(name: str) -> Session:
    """The session of an old state, over the model and the learned parts that it was made with."""
    learned = HERE / "learned" / name.removesuffix("-learned")
    method = str(learned) if name.endswith("-learned") else ""
    return open_state(HERE / "states" / f"{name}.state", model=str(MODEL), method=method, device="cpu")


def answer(session: Session, *, steps: int = 12) -> list[int]:
    """The first tokens of the answer to what version 0.1 was asked, greedily."""
    question = "What is the cat called?"
    prompts, readings = [session.prompt(question)], [session.reading_for(question)]
    rows = generate(session.backbone, prompts, readings, decoding=Decoding(max_tokens=steps))
    return [row[0] for row in rows if row[0] is not None]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.open(str(MODEL), dtype="float32", device="cpu")


# ---- states ----


def test_there_is_a_state_of_every_method_of_that_time() -> None:
    later = {"compact", "repeat-score", "long-term-pool", "rome", "memit", "ike"}
    assert set(STATES) - {f"{name}-learned" for name in LEARNED} == set(BUILT_IN) - later


@pytest.mark.parametrize("name", STATES)
def test_an_old_state_opens_and_answers_the_same(name: str) -> None:
    session = open_old(name)
    assert answer(session) == ANSWERS[name]
    assert [(entry.source, entry.characters) for entry in session.header.written] == [("a.txt", 48)]


@pytest.mark.parametrize("name", STATES)
def test_an_old_state_is_saved_in_the_present_format(name: str, tmp_path: Path) -> None:
    session = open_old(name)
    session.save(tmp_path / "again.state")
    assert load_header(tmp_path / "again.state").format == FORMAT
    again = open_state(tmp_path / "again.state", model=str(MODEL), device="cpu")
    assert answer(again) == ANSWERS[name]


@pytest.mark.parametrize("name", STATES)
def test_an_old_header_is_read_in_the_words_of_today(name: str) -> None:
    tensors, header = load(HERE / "states" / f"{name}.state")
    assert header == load_header(HERE / "states" / f"{name}.state")
    assert header.format == 1
    assert header.method == name.removesuffix("-learned")
    renamed = RENAMED.get(header.method, {})
    assert {**header.options, **renamed} == header.options
    assert not {"rows", "first_row"} & header.options.keys()
    assert (header.slots > 0) == ("keys.0" in tensors or header.method == "retrieval")


def test_an_old_state_takes_more_text() -> None:
    session = open_old("key-norm")
    session.write("The dog is called Rex.")
    assert len(session.header.written) == 2
    # The template that the old text brought lies among the slots; that of the new one is made again.
    assert session.reading.slots == 16 + len(session.encoder.template_tokens()["receipt"])
    assert session.state["keys.0"].shape[2] == 16


@pytest.mark.parametrize("name", ["window", "latent-pool"])
def test_an_old_state_that_was_changed_is_refused(name: str, tmp_path: Path) -> None:
    spoilt = bytearray((HERE / "states" / f"{name}.state").read_bytes())
    spoilt[-1] ^= 1
    (tmp_path / "spoilt.state").write_bytes(spoilt)
    with pytest.raises(CorruptStateError, match="was changed after it was written"):
        load(tmp_path / "spoilt.state")


def test_an_old_state_of_another_model_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(StateMismatchError, match=r"window\.state' was made with another model"):
        open_state(HERE / "states" / "window.state", model=str(tiny_folder), device="cpu")


def test_headers_without_what_they_need_are_refused() -> None:
    for fields in ({}, {"options": {}}, {"mechanism": "window"}):
        with pytest.raises(KeyError):
            format_1.rename(fields)


def test_options_of_other_methods_keep_their_names() -> None:
    fields = {"mechanism": "diary", "options": {"rows": 3, "first_row": 1}, "rows": 7}
    assert format_1.rename(fields) == {
        "method": "diary",
        "options": {"rows": 3, "first_row": 1},
        "slots": 7,
    }
    assert format_1.rename(fields) == {"method": "diary", "options": {"rows": 3, "first_row": 1}, "slots": 7}


# ---- learned parts ----


@pytest.mark.parametrize("name", LEARNED)
def test_an_old_folder_opens_as_a_method_and_answers_the_same(name: str) -> None:
    folder = HERE / "learned" / name
    session = load_session(str(MODEL), method=str(folder), dtype="float32", device="cpu")
    assert is_learned(str(folder))
    assert session.method.name == name
    session.write("The cat is called Muck. It sleeps in a shoe box.")
    assert answer(session) == ANSWERS[f"{name}-learned"]


@pytest.mark.parametrize("name", LEARNED)
def test_an_old_folder_is_read_in_the_words_of_today(name: str, backbone: Backbone) -> None:
    card = read_card(HERE / "learned" / name)
    assert card.keys() == {"method", "options", "backbone"}
    assert card["method"] == name
    assert backbone.is_called(card["backbone"])
    assert {**card["options"], **RENAMED.get(name, {})} == card["options"]


@pytest.mark.parametrize("name", LEARNED)
def test_an_old_folder_saved_again_is_the_same_method(name: str, backbone: Backbone, tmp_path: Path) -> None:
    options = read_card(HERE / "learned" / name)["options"]
    old, new = (build(name, backbone, **options) for _ in range(2))
    load_pretrained(old, HERE / "learned" / name)
    save_pretrained(old, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"method.json", "method.safetensors"}
    load_pretrained(new, tmp_path)
    assert new.fingerprint == old.fingerprint
    text = tokens(20)
    for name, tensor in written(new, text).items():
        assert torch.equal(tensor, written(old, text)[name])


def test_a_new_card_goes_before_an_old_one(tmp_path: Path, backbone: Backbone) -> None:
    """A folder that was trained on by a later version holds both."""
    shutil.copytree(HERE / "learned" / "adapter", tmp_path / "both")
    adapter = build("adapter", backbone, rank=3)
    stir(adapter)
    save_pretrained(adapter, tmp_path / "both")
    assert read_card(tmp_path / "both")["options"]["rank"] == 3
    again = build("adapter", backbone, rank=3, seed=1)
    load_pretrained(again, tmp_path / "both")
    assert again.fingerprint == adapter.fingerprint


def test_an_old_card_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}", '{"mechanism": "adapter"}', '{"mechanism": "adapter", "options": 3, "backbone": ""}'):
        (tmp_path / "memory.json").write_text(text)
        with pytest.raises(CheckpointError, match="holds no trained method"):
            read_card(tmp_path)


def test_an_old_folder_without_its_weights_is_refused(tmp_path: Path, backbone: Backbone) -> None:
    shutil.copy(HERE / "learned" / "adapter" / "memory.json", tmp_path / "memory.json")
    with pytest.raises(CheckpointError, match=r"memory\.safetensors cannot be read"):
        load_pretrained(build("adapter", backbone, rank=1), tmp_path)
