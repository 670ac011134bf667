"""Learned parts on disk: what is saved is loaded, and what does not belong there is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from byheart.errors import CheckpointError, StateMismatchError
from byheart.methods import build
from byheart.protocol.checkpoint import CARD, WEIGHTS, is_learned, load_pretrained, read_card, save_pretrained
from byheart.protocol.method import Method
from byheart.testing import tiny_backbone
from tests.samples import backbone, fresh, same, tokens, written


@pytest.fixture
def trained() -> Method:
    """A method with learned parts that are not where they start."""
    return fresh("latent-pool lora", backbone())


@pytest.fixture
def folder(trained: Method, tmp_path: Path) -> Path:
    save_pretrained(trained, tmp_path / "new" / "trained")
    return tmp_path / "new" / "trained"


def untrained(method: Method) -> Method:
    return build(method.name, method.backbone, **method.options())


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    """Change tensors of the weights, or drop those that are None."""
    stored = {**load_file(folder / WEIGHTS), **changes}
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, folder / WEIGHTS)


# ---- there and back ----


def test_a_folder_holds_a_card_and_the_weights(trained: Method, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {CARD, WEIGHTS}
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    assert card == {"method": "latent-pool", "options": trained.options(), "backbone": trained.backbone.fingerprint}
    assert read_card(folder) == card
    assert load_file(folder / WEIGHTS).keys() == trained.state_dict().keys()


def test_learned_parts_come_back(trained: Method, folder: Path) -> None:
    again = untrained(trained)
    assert again.fingerprint != trained.fingerprint
    load_pretrained(again, folder)
    assert again.fingerprint == trained.fingerprint
    same(written(again, tokens(40)), written(trained, tokens(40)))


def test_a_part_that_only_some_have_comes_back(trained: Method, tmp_path: Path) -> None:
    """A pool that was filled is a buffer that an empty one does not have."""
    pool = torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(0))
    again = untrained(trained)
    trained.fill(pool)
    save_pretrained(trained, tmp_path)
    load_pretrained(again, tmp_path)
    assert torch.equal(again.get_buffer("initial"), pool)
    same(again.init(), trained.init())


def test_what_is_saved_is_detached_from_training(trained: Method, folder: Path) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    save_pretrained(trained.train(), folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_saving_again_replaces_what_was_there(trained: Method, folder: Path) -> None:
    other = build("adapter", backbone(), rank=2)
    save_pretrained(other, folder)
    assert read_card(folder)["method"] == "adapter"
    with pytest.raises(StateMismatchError, match="holds learned parts of adapter for"):
        load_pretrained(untrained(trained), folder)


# ---- which names are folders ----


def test_names_of_methods_are_told_from_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_learned("latent-pool")
    assert is_learned(str(folder))
    # A path is one even where nothing is there yet: the error then names the folder.
    assert is_learned(str(tmp_path / "missing"))
    monkeypatch.chdir(folder.parent)
    assert is_learned("trained")
    (folder / CARD).unlink()
    assert not is_learned("trained")
    (folder / "memory.json").write_text("{}")
    assert is_learned("trained")


# ---- what is refused ----


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        '{"method": "window"}',
        '{"method": "window", "options": {}}',
        '{"backbone": ""}',
    ],
)
def test_a_card_that_makes_no_sense_is_refused(folder: Path, text: str) -> None:
    (folder / CARD).write_text(text)
    with pytest.raises(CheckpointError, match=rf"trained' holds no trained method: {CARD} cannot be read"):
        read_card(folder)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="holds no trained method"):
            read_card(place)


def test_parts_of_another_method_or_model_are_refused_with_both_sides(trained: Method, folder: Path) -> None:
    own = trained.backbone.fingerprint
    with pytest.raises(
        StateMismatchError, match=f"holds learned parts of latent-pool for backbone {own}; this is window on"
    ):
        load_pretrained(build("window", backbone()), folder)
    other = tiny_backbone(seed=1)
    elsewhere = build("latent-pool", other, **trained.options())
    with pytest.raises(
        StateMismatchError, match=f"backbone {own}; this is latent-pool on backbone {other.fingerprint}"
    ):
        load_pretrained(elsewhere, folder)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no tensors")])
def test_weights_that_cannot_be_read_are_refused(trained: Method, folder: Path, spoil: Any) -> None:
    spoil(folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"trained': {WEIGHTS} cannot be read"):
        load_pretrained(untrained(trained), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mark": None}, r"missing \['mark'\], unexpected \[\], of another shape \[\]"),
        ({"more": torch.zeros(1)}, r"missing \[\], unexpected \['more'\], of another shape \[\]"),
        ({"mark": torch.zeros(5)}, r"missing \[\], unexpected \[\], of another shape \['mark'\]"),
        ({"mark": None, "more": torch.zeros(1)}, r"missing \['mark'\], unexpected \['more'\]"),
        ({"mark": None, "initial": torch.zeros(3, 24, 32)}, r"missing \['mark'\], unexpected \[\]"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(
    trained: Method, folder: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    rewrite(folder, **changes)
    method = untrained(trained)
    before = method.fingerprint
    with pytest.raises(CheckpointError, match=rf"trained' does not fit: {message}"):
        load_pretrained(method, folder)
    assert method.fingerprint == before
