"""A new memory is compact where nothing else is said, and nobody waits for a calibration who did not hear of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from byheart import load, open_state
from byheart.errors import ModelError, UnknownNameError, UsageError
from byheart.model.backbone import Backbone
from byheart.protocol.codec import shelf
from byheart.protocol.codec.calibration import calibrate
from byheart.protocol.codec.codec import Codec
from byheart.session import calibration
from byheart.store.folder import Store
from byheart.testing import tiny_backbone, tiny_model
from tests.conftest import CAT, save_tiny, tiny_tokenizer
from tests.samples import codec_of


def uncoded(seed: int) -> Backbone:
    """A tiny model that no other test has a codec for."""
    made = tiny_backbone("llama", seed=seed)
    assert shelf.find(made) is None
    return made


def uneven() -> Backbone:
    """A tiny model that says of itself that its second layer has more key-value heads than the others."""
    made = uncoded(51)
    parts = [torch.zeros(1, heads, 1, 8) for heads in (2, 4, 2)]
    made.__dict__["slot"] = SimpleNamespace(keys=parts, values=parts)
    return made


def test_without_a_method_a_memory_is_compact(
    tiny_folder: Path, tmp_path: Path, no_calibration: None, caplog: pytest.LogCaptureFixture
) -> None:
    session = load(str(tiny_folder), dtype="float32")
    assert (session.method.name, session.header.options["times"]) == ("compact", 30)
    assert load(session.backbone, encoder=session.encoder, times=7).header.options["times"] == 7
    assert Store(tmp_path).open("cat", new=True, model=str(tiny_folder)).method.name == "compact"
    assert not caplog.records


def test_a_model_that_can_have_no_codec_is_given_full_and_it_is_said(
    no_calibration: None, caplog: pytest.LogCaptureFixture
) -> None:
    session = load(uneven(), encoder=tiny_tokenizer())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == (
        "This memory is made with method 'full' instead of 'compact', in many times more bytes: its layers have keys "
        "and values of 2 different shapes, which cannot be coded together."
    )
    assert session.method.name == "full"


def test_a_method_that_is_named_gives_way_to_no_other(no_calibration: None, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match=r"of 2 different shapes, .*; use a method that needs none, such as full"):
        load(uneven(), method="compact", encoder=tiny_tokenizer())
    with pytest.raises(UnknownNameError, match="no method ''"):
        load(uneven(), method="", encoder=tiny_tokenizer())
    assert not caplog.records


def test_calibrating_a_model_by_hand_says_that_it_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"No codec can be made for this model: its layers .*; use a method that"):
        calibrate(uneven(), calibration_examples())


def calibration_examples() -> list[Any]:
    text = torch.arange(3, 103)
    return [calibration.Example(text[:0], text, text[:10], 0)] * 20


def test_without_a_place_for_codecs_memories_are_full(
    tmp_path: Path, no_calibration: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "file" / "cache"))
    assert load(uncoded(52), encoder=tiny_tokenizer()).method.name == "full"
    assert f"codecs cannot be kept in '{tmp_path}/file/cache/codecs' (Not a directory; $BYHEART_CACHE" in caplog.text
    with pytest.raises(UsageError, match="codecs cannot be kept in "):
        load(uncoded(52), method="compact", encoder=tiny_tokenizer())


def test_a_codec_that_is_there_needs_no_place(
    tiny_folder: Path, tmp_path: Path, no_calibration: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "file" / "cache"))
    assert load(str(tiny_folder)).method.name == "compact"


def quick_codec(heard: Callable[[], object]) -> Callable[..., Codec]:
    """In place of ``make_codec``: calls ``heard`` and shows progress."""

    def make(backbone: Backbone, encoder: object, *, progress: Callable[[int, int], None] | None = None) -> Codec:
        heard()
        if progress is not None:
            progress(1, 219)
        return codec_of(backbone)

    return make


def test_a_calibration_is_announced_before_and_shows_progress(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backbone, before, seen = uncoded(53), [], []
    monkeypatch.setattr(calibration, "make_codec", quick_codec(lambda: before.extend(caplog.messages)))
    load(backbone, encoder=tiny_tokenizer(), progress=lambda done, total: seen.append((done, total)))
    (line,) = before
    assert line.startswith("There is no codec for model 'tiny-llama' yet, so the model is calibrated first: it ")
    assert "minutes" in line
    assert 'method="full"' in line
    assert "--method full" in line
    assert seen == [(1, 219)]
    load(backbone, encoder=tiny_tokenizer())
    assert len(caplog.messages) == 1


def test_full_announces_and_calibrates_nothing(no_calibration: None, caplog: pytest.LogCaptureFixture) -> None:
    assert load(uncoded(54), method="full", encoder=tiny_tokenizer()).method.name == "full"
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "message"),
    [({"times": 500}, "times must be from 2 to 128; it is 500"), ({"time": 30}, "no option of compact 'time'")],
)
def test_wrong_options_are_said_before_a_calibration(
    no_calibration: None, caplog: pytest.LogCaptureFixture, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load(uncoded(54), encoder=tiny_tokenizer(), **options)
    assert not caplog.records


def test_a_model_without_numbers_ends_in_an_error_that_names_full() -> None:
    model = tiny_model("llama", seed=55)
    with torch.no_grad():
        model.get_parameter("lm_head.weight").fill_(torch.nan)
    with pytest.raises(ModelError, match=r"Model 'broken' could not be calibrated: .*: method=\"full\""):
        load(Backbone(model, source="broken"), encoder=tiny_tokenizer())


def test_a_stored_memory_is_opened_and_asked_without_a_calibration(
    tmp_path: Path, no_calibration: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_tiny(tmp_path / "tiny", seed=56)
    session = load(str(folder), method="full")
    session.write(CAT)
    session.save(tmp_path / "cat.state")
    caplog.clear()
    again = open_state(tmp_path / "cat.state")
    assert again.ask("Who?", max_tokens=3) == session.ask("Who?", max_tokens=3)
    again.write("More.")
    assert again.method.name == "full"
    assert not caplog.records
