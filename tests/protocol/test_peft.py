"""Updates in the files of PEFT: which names they have, and that PEFT computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from byheart.model.reading import LowRankDelta, Reading
from byheart.protocol import peft
from byheart.testing import tiny_backbone, tiny_model
from tests.samples import backbone, logits, tokens

# PEFT asks transformers by a name that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
PROMPT = tokens(9)


def updates(*names: str, rank: int = 3, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """A random update of every linear layer of these names."""
    own, generator = backbone(), torch.Generator().manual_seed(seed)
    paths = [path for i in range(len(own.layers)) for path in own.linears(i) if path.rpartition(".")[2] in names]
    shapes = {path: own.linear(path).weight.shape for path in paths}
    return {
        path: (torch.randn(rank, inside, generator=generator) / 4, torch.randn(outside, rank, generator=generator) / 4)
        for path, (outside, inside) in shapes.items()
    }


def write(folder: Path, found: dict[str, tuple[Tensor, Tensor]], *, alpha: float = 6.0) -> None:
    peft.write(folder, found, decoder=backbone().decoder_path, base="tiny", alpha=alpha, dropout=0.25)


def test_the_files_say_what_the_update_is(tmp_path: Path) -> None:
    write(tmp_path / "new" / "folder", updates("q_proj", "down_proj"))
    card = json.loads((tmp_path / "new" / "folder" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (card["r"], card["lora_alpha"], card["lora_dropout"], card["bias"]) == (3, 6.0, 0.25, "none")
    assert (card["base_model_name_or_path"], card["target_modules"]) == ("tiny", ["down_proj", "q_proj"])
    tensors = load_file(tmp_path / "new" / "folder" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 3
    assert tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (3, 32)
    assert tensors["base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"].shape == (32, 3)


@pytest.mark.parametrize("alpha", [3.0, 12.0])
def test_peft_computes_what_a_reading_does(tmp_path: Path, alpha: float) -> None:
    found = updates("q_proj", "v_proj", "up_proj")
    write(tmp_path, found, alpha=alpha)
    scale = alpha / 3
    reading = Reading(deltas={path: LowRankDelta(down[None], scale * up[None]) for path, (down, up) in found.items()})
    ours = logits(backbone(), reading, PROMPT)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(tiny_model(), tmp_path)(PROMPT).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (ours - logits(backbone(), Reading(), PROMPT)).abs().max() > 1e-2


def test_tensors_in_training_are_written_without_their_history(tmp_path: Path) -> None:
    found = {path: (down.requires_grad_(), up.mT.contiguous().mT) for path, (down, up) in updates("q_proj").items()}
    write(tmp_path, found)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    path = "layers.1.self_attn.q_proj"
    assert torch.equal(tensors[f"base_model.model.model.{path}.lora_A.weight"], found[path][0].detach())
    assert torch.equal(tensors[f"base_model.model.model.{path}.lora_B.weight"], found[path][1])


def test_an_update_of_two_ranks_cannot_be_written(tmp_path: Path) -> None:
    mixed = {**updates("q_proj", rank=2), **updates("v_proj", rank=3)}
    with pytest.raises(ValueError, match="unpack"):
        write(tmp_path, mixed)
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_names_follow_the_place_of_the_decoder(tmp_path: Path) -> None:
    own = tiny_backbone("gemma2")
    path = "layers.0.mlp.up_proj"
    inside, outside = own.linear(path).in_features, own.linear(path).out_features
    found = {path: (torch.zeros(1, inside), torch.zeros(outside, 1))}
    peft.write(tmp_path, found, decoder="language_model.model", base="x", alpha=1.0)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        f"base_model.model.language_model.model.{path}.lora_{part}.weight" for part in "AB"
    }
