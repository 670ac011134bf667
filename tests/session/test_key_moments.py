"""Measuring a model for editors of knowledge: at first use, which is said, or before, on texts of one's own."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from byheart.errors import InputError, UsageError
from byheart.protocol import key_moments
from byheart.session import key_moments as measuring
from byheart.session.key_moments import measure_layers
from byheart.session.opening import load
from byheart.testing import tiny_backbone
from byheart.text.encoder import ChatEncoder
from tests.conftest import save_tiny, tiny_tokenizer


def test_layers_are_measured_on_texts_of_ones_own(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", seed=51)
    texts = tmp_path / "a.txt"
    texts.write_text("Ann has a dog. " * 80)
    shown: list[tuple[int, int]] = []
    found = measure_layers(
        str(folder), [2, 0], data=str(texts), dtype="float32", progress=lambda *steps: shown.append(steps)
    )
    assert {file.name for file in found.iterdir()} == {f"layers.{n}.mlp.down_proj.safetensors" for n in (0, 2)}
    assert shown[-1][0] == shown[-1][1] > 0
    with pytest.raises(UsageError, match=r"layers must lie between 0 and 2; they are .3."):
        measure_layers(str(folder), [3], dtype="float32")
    texts.write_text(" ")
    with pytest.raises(InputError, match=r"a\.txt"):
        measure_layers(str(folder), [1], data=str(texts), dtype="float32")


def test_what_was_not_measured_is_at_first_use_which_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("Ann has a dog. " * 80)
    monkeypatch.setattr(measuring, "TEXTS", tmp_path / "a.txt")
    own, encoder = tiny_backbone(seed=52), ChatEncoder(tiny_tokenizer())
    with caplog.at_level(logging.WARNING):
        made = load(own, method="memit", encoder=encoder, layers=[0, 1])
    assert "What 2 layers of model 'tiny-llama' are given was not measured yet" in caplog.text
    assert all(key_moments.find(own, path) is not None for path in made.method.moment_paths)
    caplog.clear()
    load(own, method="rome", encoder=encoder, layers=[1])
    assert not caplog.text
