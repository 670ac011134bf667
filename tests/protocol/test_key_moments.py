"""The moments of keys: what is measured, how it is kept, and what is solved with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from byheart.errors import CheckpointError, UsageError
from byheart.files import cache_folder
from byheart.model.backbone import Backbone
from byheart.protocol import key_moments
from byheart.testing import FIXED_FAMILIES, tiny_backbone
from tests.samples import tokens

TEXTS = [tokens(12, seed=1)[0], tokens(7, seed=2)[0]]


def values(own: Backbone) -> str:
    [path] = [path for path, role in own.feed_forward_roles(1).items() if role == "values"]
    return path


@pytest.mark.parametrize("family", ["llama", *FIXED_FAMILIES])
def test_moments_are_the_mean_square_of_what_a_matrix_is_given(family: str) -> None:
    own, shown = tiny_backbone(family), []
    path = values(own)
    found = key_moments.measure(own, [path], TEXTS, progress=lambda done, total: shown.append((done, total)))
    seen: list[torch.Tensor] = []
    handle = own.linear(path).register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    with torch.no_grad():
        for text in TEXTS:
            own.model(text[None])
    handle.remove()
    keys = torch.cat(seen)
    torch.testing.assert_close(found[path], keys.T @ keys / len(keys), rtol=1e-4, atol=1e-5)
    assert shown == [(1, 2), (2, 2)]


def test_moments_are_kept_for_later_processes_and_damage_is_no_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    own = tiny_backbone(seed=41)
    path = values(own)
    assert key_moments.find(own, path) is None
    with pytest.raises(UsageError, match=r"layer 1's .* byheart calibrate tiny-llama --layers 1"):
        key_moments.require(own, path)
    measured = key_moments.measure(own, [path], TEXTS)
    folder = key_moments.keep(own, measured)
    assert folder.parent == cache_folder() / "key-moments"
    monkeypatch.setattr(key_moments, "KNOWN", {})
    found = key_moments.find(own, path)
    assert found is not None
    assert torch.equal(found, measured[path])
    [file] = folder.iterdir()
    for broken in (b"", b"x" * 64):
        file.write_bytes(broken)
        monkeypatch.setattr(key_moments, "KNOWN", {})
        assert key_moments.find(own, path) is None
    for tensors in ({"moments": torch.zeros(2, 2)}, {"other": measured[path]}):
        save_file(tensors, file, metadata={"backbone": folder.name})
        monkeypatch.setattr(key_moments, "KNOWN", {})
        assert key_moments.find(own, path) is None
    save_file({"moments": measured[path]}, file, metadata={"backbone": "another"})
    assert key_moments.find(own, path) is None


def test_moments_that_cannot_be_written_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "file"))
    own = tiny_backbone(seed=42)
    with pytest.raises(CheckpointError, match="Moments could not be written"):
        key_moments.keep(own, {values(own): torch.eye(48)})


def test_a_factor_solves_though_there_were_few_tokens() -> None:
    keys = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    moments = keys.T @ keys / 200
    found = key_moments.solve(key_moments.factor(moments, 3.0), [keys[0], keys[1]])
    torch.testing.assert_close(found.float(), torch.linalg.inv(3 * moments) @ keys[:2].T, rtol=1e-2, atol=1e-3)
    assert key_moments.solve(key_moments.factor(torch.outer(keys[0], keys[0])), [keys[1]]).isfinite().all()
    with pytest.raises(UsageError, match="no finite number"):
        key_moments.factor(torch.full((2, 2), float("nan")))
