"""A model that is larger than its device computes what it computes there, its first layers on disk between passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from byheart import load
from byheart.errors import UsageError
from byheart.model import loading
from byheart.model.backbone import Backbone
from byheart.model.offload import offloaded, place_layers
from byheart.testing import tiny_model
from tests.conftest import CAT, Run
from tests.samples import OPTIONS

MODEL = tiny_model("llama")
LAYER = sum(4 * parameter.numel() for parameter in MODEL.model.layers[0].parameters())
REST = sum(4 * parameter.numel() for parameter in MODEL.parameters()) - len(MODEL.model.layers) * LAYER
LAYERS = [f"model.layers.{n}" for n in range(len(MODEL.model.layers))]


def room(layers: int) -> int:
    """Free bytes, of which four fifths hold all that is no layer and so many layers."""
    return int((REST + layers * LAYER) / 0.8) + 8


def places(device: str, **free: int) -> list[str]:
    numbered = {int(name[1:]) if name.startswith("g") else name: size for name, size in free.items()}
    placed = place_layers(MODEL, torch.device(device), dtype=torch.float32, free=numbered)
    assert {place for name, place in placed.items() if name not in LAYERS} == {device}
    return [placed[name] for name in LAYERS]


@pytest.fixture
def large(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """The tiny model where only its last layer fits: the other two are on disk."""
    monkeypatch.setattr(pytest.importorskip("accelerate.utils"), "get_max_memory", lambda: {"cpu": room(1)})
    return Backbone.open(str(tiny_folder), dtype="float32", device="offload")


@pytest.fixture
def whole(tiny_folder: Path) -> Backbone:
    return Backbone.open(str(tiny_folder), dtype="float32", device="cpu")


# ---- where layers are ----


def test_the_last_layers_are_on_the_device_and_the_others_wait() -> None:
    assert places("cuda:1", g0=0, g1=room(1), cpu=room(9)) == ["cpu", "cpu", "cuda:1"]
    assert places("cuda:1", g0=0, g1=room(9), cpu=room(9)) == ["cuda:1"] * 3
    assert places("cuda:0", g0=room(1), cpu=int(1.5 * LAYER / 0.8)) == ["disk", "cpu", "cuda:0"]
    assert places("cpu", cpu=room(2)) == ["disk", "cpu", "cpu"]
    assert places("cpu", cpu=room(0)) == ["disk"] * 3


def test_half_precision_takes_half_the_room() -> None:
    placed = place_layers(MODEL, torch.device("cpu"), dtype=torch.bfloat16, free={"cpu": room(2)})
    assert set(placed.values()) == {"cpu"}


def test_every_weight_has_a_place() -> None:
    placed = place_layers(MODEL, torch.device("cpu"), dtype=torch.float32, free={"cpu": room(1)})
    names = [name for name, _ in MODEL.named_parameters()]
    assert [name for name in names if not any(name.startswith(f"{part}.") for part in placed)] == []


# ---- what it computes ----


def waiting(backbone: Backbone) -> int:
    return sum(isinstance(module, nn.Linear) for _, module in offloaded(backbone.model))


def test_it_is_the_same_model(large: Backbone, whole: Backbone) -> None:
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert waiting(large) == 2 * 7
    assert large.device.type == "cpu"
    assert torch.equal(large.logits(large.hidden(tokens)), whole.logits(whole.hidden(tokens)))
    assert large.fingerprint == whole.fingerprint
    assert large.is_called(whole.fingerprint)
    assert not large.is_called("another")
    assert waiting(large) == 2 * 7


@pytest.mark.usefixtures("one_order_of_products")
@pytest.mark.parametrize("method", ["latent-pool", "compressed-kv", "last-ffn", "ffn-edit", "repeat-score", "full"])
def test_methods_do_not_know_of_it(method: str, large: Backbone, whole: Backbone) -> None:
    answers = []
    for backbone in (large, whole):
        torch.manual_seed(0)
        session = load(backbone, method=method, **OPTIONS.get(method, {}))
        session.write(CAT)
        answers.append((session.ask("Who?", max_tokens=4), session.state))
    assert answers[0][0] == answers[1][0]
    assert all(torch.equal(tensor, answers[1][1][name]) for name, tensor in answers[0][1].items())
    assert waiting(large) == 2 * 7


def test_a_memory_is_opened_with_either(large: Backbone, whole: Backbone, tmp_path: Path) -> None:
    session = load(large, method="window")
    session.write(CAT)
    session.save(tmp_path / "cat.safetensors")
    again = load(whole, method="window")
    again.load(tmp_path / "cat.safetensors")
    assert again.ask("Who?", max_tokens=4) == session.ask("Who?", max_tokens=4)


def test_from_the_command_line(run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("accelerate.utils"), "get_max_memory", lambda: {"cpu": room(1)})
    (tmp_path / "cat.txt").write_text(CAT)
    made = ["--model", tiny_folder, "--method", "full", "--device", "offload"]
    assert run("write", "cat", tmp_path / "cat.txt", *made).code == 0
    assert run("ask", "cat", "Who?", "--max-tokens", 4, "--device", "offload").code == 0


def test_what_it_needs_is_said(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="dtype '4bit' keeps all weights on the GPU"):
        loading.offload_settings(str(tiny_folder), torch.device("cpu"), {"quantization_config": object()})
    with pytest.raises(UsageError, match="device 'offload' is for models that transformers opens"):
        loading.empty_model({"model_type": "llama"}, device="offload")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"device 'offload' needs the package accelerate.*byheart\[train\]"):
        Backbone.open(str(tiny_folder), dtype="float32", device="offload")
