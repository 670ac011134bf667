"""Trained memories that come with the package: found by model and options, and only then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import byheart
from byheart import shipped
from byheart.backbone import Backbone
from byheart.gap import gap
from byheart.models import open_tokenizer
from tests.samples import backbone, fresh

OPTIONS = {"tokens": 2, "segment_tokens": 16, "rank": 2}


@pytest.fixture
def own() -> Backbone:
    return backbone()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Backbone) -> Path:
    """A package that ships two memories for the tiny model."""
    for name, case in (("a-concat", "compressed-kv"), ("b-mean", "compressed-kv mean")):
        fresh(case, own).save_pretrained(tmp_path / name)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    return tmp_path


def test_a_memory_is_found_by_its_options(folder: Path, own: Backbone) -> None:
    mark = own.fingerprint
    assert shipped.find("compressed-kv", mark, {}) == folder / "a-concat"
    assert shipped.find("compressed-kv", mark, {"merge": "mean"}) == folder / "b-mean"
    assert shipped.find("compressed-kv", mark, {"rank": 3}) is None
    assert shipped.find("latent-pool", mark, {}) is None
    assert shipped.find("compressed-kv", "another model", {}) is None


def test_a_session_gets_the_trained_parts_unless_told_not_to(folder: Path, own: Backbone, tiny_folder: Path) -> None:
    words = open_tokenizer(str(tiny_folder))
    expected = fresh("compressed-kv mean", own)
    made = byheart.load(own, memory="compressed-kv", tokenizer=words, merge="mean")
    assert made.memory.options() == expected.options()
    assert made.memory.fingerprint == expected.fingerprint
    untrained = byheart.load(own, memory="compressed-kv", tokenizer=words, trained=False, **OPTIONS)
    assert untrained.memory.fingerprint != fresh("compressed-kv", own).fingerprint


def test_a_saved_state_finds_its_trained_parts_again(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    opened = Backbone.open(str(tiny_folder))
    fresh("compressed-kv", opened).save_pretrained(folder / "c-own")
    made = byheart.load(opened, memory="compressed-kv")
    made.write("The cat is called Muck.")
    made.save(tmp_path / "cat.safetensors")
    later = byheart.open_state(tmp_path / "cat.safetensors")
    assert later.memory.fingerprint == made.memory.fingerprint
    assert all(torch.equal(later.state[name], tensor) for name, tensor in made.state.items())


def test_what_is_shipped_is_small_and_whole() -> None:
    for card in shipped.FOLDER.glob("*/memory.json"):
        assert (card.parent / "memory.safetensors").stat().st_size <= 8_000_000
        assert "Training" in (card.parent / "README.md").read_text(encoding="utf-8")
        assert json.loads((card.parent / "recipe.json").read_text(encoding="utf-8"))["mechanism"]


@pytest.mark.parametrize(("memory", "least"), [("compressed-kv", 0.3), ("latent-pool", 0.3)])
def test_what_is_shipped_remembers_an_article(memory: str, least: float) -> None:
    """On the article of the demonstration, which nothing was trained on."""
    article = Path(__file__).parent.parent / "examples" / "warsaw.txt"
    rows = gap([memory], [str(article)], windows=6, batch=6, history=(4,), control=True)
    found = {row.metric: row.value for row in rows if row.memory == memory}
    assert found["gap_closed"] > least
    assert found["gap_closed"] > found["gap_closed_by_other_text"]
