"""Adapters in PEFT's files: what PEFT wrote computes the same here, and what is of another model is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from byheart.errors import CheckpointError, UsageError
from byheart.methods.adapter import Adapter
from byheart.protocol.checkpoint import read_card
from byheart.published.convert import convert
from byheart.published.peft import peft
from byheart.session.opening import load
from byheart.testing import tiny_backbone, tiny_model
from tests.conftest import tiny_tokenizer
from tests.samples import logits, stir, tokens, written

# PEFT asks transformers by a name that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
TEXT, PROMPT = tokens(5), tokens(9)


def trained(folder: Path, family: str, *names: str, **settings: Any) -> torch.Tensor:
    """A PEFT adapter of a tiny model, its update made visible; gives the logits of PEFT's own model."""
    config = LoraConfig(r=3, lora_alpha=6, target_modules=list(names), task_type="CAUSAL_LM", **settings)
    model: Any = get_peft_model(tiny_model(family), config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
        said: torch.Tensor = model(PROMPT).logits
    model.save_pretrained(folder)
    return said


@pytest.mark.parametrize(
    ("family", "names"),
    [("llama", ("q_proj", "down_proj")), ("gpt2", ("c_attn", "c_fc")), ("gptj", ("q_proj", "fc_out"))],
)
def test_an_adapter_of_peft_computes_the_same_here(tmp_path: Path, family: str, names: tuple[str, ...]) -> None:
    said = trained(tmp_path, family, *names, fan_in_fan_out=family == "gpt2")
    own = tiny_backbone(family)
    made = peft(tmp_path, base=own)
    ours = logits(own, made.read(written(made, TEXT)), PROMPT)
    torch.testing.assert_close(ours, said, rtol=0, atol=1e-4)
    assert (made.rank, made.alpha, made.linears) == (3, 6.0, sorted(names))


def test_what_byheart_wrote_for_peft_is_read_again(tmp_path: Path) -> None:
    own = tiny_backbone("gpt2")
    made = Adapter(own, linears=["c_fc"], rank=2, dropout=0.25)
    stir(made)
    made.export(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"]
    again = peft(tmp_path, base=own)
    assert again.options() == {**made.options(), "linears": ["c_fc"]}
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.parameters(), made.parameters(), strict=True))


def test_an_adapter_is_imported_and_opens_as_any_method(tmp_path: Path, tiny_folder: Path) -> None:
    trained(tmp_path / "peft", "llama", "v_proj")
    with pytest.raises(CheckpointError, match=r"method.json cannot be read .* byheart import peft .* --base MODEL"):
        read_card(tmp_path / "peft")
    made = convert("peft", tmp_path / "peft", tmp_path / "own", base=str(tiny_folder), dtype="float32")
    assert (made.method, made.model) == ("adapter", str(tiny_folder))
    opened = load(str(tiny_folder), method=str(tmp_path / "own"), dtype="float32", encoder=tiny_tokenizer())
    assert opened.method.options()["linears"] == ["v_proj"]
    with pytest.raises(UsageError, match=r"peft cannot be read with these options: .*base"):
        convert("peft", tmp_path / "peft", tmp_path / "other")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, "gpt2", "c_fc", fan_in_fan_out=True)
    with pytest.raises(UsageError, match=r"updates c_fc, which model 'tiny-llama' does not have: .*another model"):
        peft(tmp_path, base=tiny_backbone())
    trained(tmp_path / "deep", "llama", "q_proj")
    with pytest.raises(CheckpointError, match=r"does not fit its settings; missing: .*layers.3.*"):
        peft(tmp_path / "deep", base=tiny_backbone(num_hidden_layers=4))
    with pytest.raises(CheckpointError, match=r"wrong shape: .*q_proj.lora_A.weight \(3, 32\) instead of \(3, 64\)"):
        peft(tmp_path / "deep", base=tiny_backbone(hidden_size=64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"r": 0}, "r: "),
    ],
)
def test_other_kinds_of_adapters_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    trained(tmp_path, "llama", "q_proj")
    card = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(CheckpointError, match=message):
        peft(tmp_path, base=tiny_backbone())


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    trained(tmp_path, "llama", "q_proj")
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, file)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        peft(tmp_path, base=tiny_backbone())
