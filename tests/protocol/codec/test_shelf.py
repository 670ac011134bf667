from __future__ import annotations

from pathlib import Path

import pytest
import torch

from byheart.errors import CheckpointError, UsageError
from byheart.protocol.codec import shelf
from byheart.protocol.codec.calibration import Example, calibrate
from byheart.testing import tiny_backbone
from tests.samples import backbone, codec_of, tokens


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path))
    return tmp_path


def test_a_codec_that_another_process_kept_is_found(cache: Path) -> None:
    path = shelf.keep(codec_of(backbone()))
    assert path.is_relative_to(cache)
    other = tiny_backbone("llama", seed=78)
    rows = tokens(60, seed=21, batch=40)
    codec = calibrate(other, [Example(row[:0], row[:50], row[50:], 0) for row in rows])
    assert shelf.find(other) is None
    shelf.save_codec(codec, path.with_stem(other.fingerprint.partition(".")[0]))
    found = shelf.find(other)
    assert found is not None
    assert found is not codec
    assert found.fingerprint == codec.fingerprint


def test_a_codec_serves_its_model_in_any_precision() -> None:
    codec = codec_of(backbone())
    narrow = tiny_backbone("llama", dtype=torch.bfloat16)
    if narrow.fingerprint.partition(".")[0] == backbone().fingerprint.partition(".")[0]:
        assert shelf.require(narrow).fingerprint == codec.fingerprint
        assert shelf.require(narrow).backbone is narrow


def test_a_model_without_a_codec_is_told_how_to_get_one() -> None:
    other = tiny_backbone("llama", seed=77)
    assert shelf.find(other) is None
    with pytest.raises(UsageError, match="byheart calibrate"):
        shelf.require(other)


def test_a_damaged_file_is_refused_and_that_of_another_model_too(tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    shelf.save_codec(codec_of(backbone()), path)
    with pytest.raises(CheckpointError, match="another model"):
        shelf.open_codec(path, tiny_backbone("llama", seed=77))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="holds no codec"):
        shelf.open_codec(path, backbone())
