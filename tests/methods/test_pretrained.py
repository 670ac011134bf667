"""Pretrained parts that come with the package: found by model and options, and only then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import byheart
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.tasks.gap import Gap
from byheart.methods import pretrained as shipped
from byheart.model.backbone import Backbone
from byheart.model.loading import open_tokenizer
from byheart.protocol.checkpoint import save_pretrained
from tests.samples import ROOT, backbone, fresh

OPTIONS = {"tokens": 2, "segment_tokens": 16, "rank": 2}


@pytest.fixture
def own() -> Backbone:
    return backbone()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Backbone) -> Path:
    """A package that ships two memories for the tiny model."""
    for name, case in (("a-concat", "compressed-kv"), ("b-mean", "compressed-kv mean")):
        save_pretrained(fresh(case, own), tmp_path / name)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    return tmp_path


def test_parts_are_found_by_their_options(folder: Path, own: Backbone) -> None:
    mark = own.fingerprint
    assert shipped.find("compressed-kv", mark, {}) == folder / "a-concat"
    assert shipped.find("compressed-kv", mark, {"merge": "mean"}) == folder / "b-mean"
    assert shipped.find("compressed-kv", mark, {"rank": 3}) is None
    assert shipped.find("latent-pool", mark, {}) is None
    assert shipped.find("compressed-kv", "another model", {}) is None


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_same_parts_serve_slots_in_any_bits(folder: Path, own: Backbone, tiny_folder: Path, bits: int) -> None:
    card = folder / "a-concat" / "method.json"
    older = json.loads(card.read_text())
    del older["options"]["bits"]
    card.write_text(json.dumps(older))
    made = byheart.load(own, method="compressed-kv", encoder=open_tokenizer(str(tiny_folder)), bits=bits)
    assert made.method.fingerprint == fresh("compressed-kv", own).fingerprint
    assert made.header.options["bits"] == bits


def test_a_session_gets_the_trained_parts_unless_told_not_to(folder: Path, own: Backbone, tiny_folder: Path) -> None:
    words = open_tokenizer(str(tiny_folder))
    expected = fresh("compressed-kv mean", own)
    made = byheart.load(own, method="compressed-kv", encoder=words, merge="mean")
    assert made.method.options() == expected.options()
    assert made.method.fingerprint == expected.fingerprint
    untrained = byheart.load(own, method="compressed-kv", encoder=words, trained=False, **OPTIONS)
    assert untrained.method.fingerprint != fresh("compressed-kv", own).fingerprint


def test_a_saved_state_finds_its_trained_parts_again(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    opened = Backbone.open(str(tiny_folder))
    save_pretrained(fresh("compressed-kv", opened), folder / "c-own")
    made = byheart.load(opened, method="compressed-kv")
    made.write("The cat is called Muck.")
    made.save(tmp_path / "cat.safetensors")
    later = byheart.open_state(tmp_path / "cat.safetensors")
    assert later.method.fingerprint == made.method.fingerprint
    assert all(torch.equal(later.state[name], tensor) for name, tensor in made.state.items())


def test_what_is_shipped_is_small_and_whole() -> None:
    for card in shipped.FOLDER.glob("*/method.json"):
        assert (card.parent / "method.safetensors").stat().st_size <= 8_000_000
        assert "Training" in (card.parent / "README.md").read_text(encoding="utf-8")
        assert json.loads((card.parent / "recipe.json").read_text(encoding="utf-8"))["method"]


@pytest.mark.parametrize(("method", "least"), [("compressed-kv", 0.3), ("latent-pool", 0.3)])
def test_what_is_shipped_remembers_an_article(method: str, least: float) -> None:
    """On the article of the demonstration, which nothing was trained on."""
    article = ROOT / "examples" / "warsaw.txt"
    rows = evaluate(Gap(windows=3, control=True), str(article), [method], batch=3)
    found = {row.metric: row.value for row in rows if row.method == method}
    assert found["gap_closed"] > least
    assert found["gap_closed"] > found["gap_closed_by_other_text"]
