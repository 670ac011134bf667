"""The same means the same: whatever changes what a model computes changes its name, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from byheart.model.fingerprint import fingerprint, fingerprint_model, sample_fingerprint, without_remainder
from byheart.testing import FAMILIES, tiny_model

Change = Callable[[PreTrainedModel], object]
UP = "model.layers.1.mlp.up_proj.weight"


def named(family: str = "llama", **settings: Any) -> str:
    return fingerprint_model(tiny_model(family, **settings))


def changed(change: Change) -> str:
    """The name of the tiny model after ``change``."""
    model = tiny_model()
    with torch.no_grad():
        change(model)
    return fingerprint_model(model)


def weight(model: PreTrainedModel, name: str = UP) -> Tensor:
    return model.get_parameter(name)


def add_rank_one(model: PreTrainedModel) -> None:
    """As ROME edits a fact, and as a merged LoRA of rank 1 changes a projection."""
    rows, columns = weight(model).shape
    weight(model).add_(1e-3 * torch.outer(torch.randn(rows), torch.randn(columns)))


def add_noise_between_samples(model: PreTrainedModel) -> None:
    """What byheart 0.2 did not see: it sampled 256 values of each tensor."""
    flat = weight(model).view(-1)
    seen = torch.zeros(len(flat), dtype=torch.bool)
    seen[:: max(1, len(flat) // 256)] = True
    flat[~seen] += 0.5


WEIGHTS: dict[str, Change] = {
    "a rank-one edit": add_rank_one,
    "noise between the samples": add_noise_between_samples,
    "a column": lambda model: weight(model)[:, 3].mul_(-1),
    "a fine-tune of one layer": lambda model: weight(model).add_(1e-6),
    "two rows swapped": lambda model: weight(model).copy_(weight(model)[[1, 0, *range(2, len(weight(model)))]]),
    "a token's embedding": lambda model: weight(model, "model.embed_tokens.weight")[77].mul_(1.5),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "rope_theta": {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
    "YaRN": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}},
    "linear scaling": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
    "norm epsilon": {"rms_norm_eps": 1e-3},
    "activation": {"hidden_act": "gelu"},
    "heads": {"num_attention_heads": 8, "head_dim": 4, "num_key_value_heads": 4},
    # Of no weight, but of what memories begin with.
    "the first token": {"bos_token_id": 40},
}


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS)
def test_other_weights_have_another_name(change: Change) -> None:
    assert changed(change) != named()


@pytest.mark.parametrize("place", [0, -1, 0.37])
def test_one_value_of_any_tensor_changes_the_name(place: float) -> None:
    model = tiny_model()
    names = {fingerprint_model(model)}
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        index = int(place * len(flat)) if isinstance(place, float) else place
        flat[index] += 1e-3
        names.add(fingerprint_model(model))
    assert len(names) == 1 + len(list(model.parameters()))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_decide_what_weights_compute_change_the_name(settings: dict[str, Any]) -> None:
    own, other = tiny_model(), tiny_model(**settings)
    other.load_state_dict(own.state_dict())
    assert fingerprint_model(other) != fingerprint_model(own)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mistral", {"sliding_window": 8}),
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("granite", {"logits_scaling": 2.0}),
        ("llama", {"tie_word_embeddings": True}),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3, "use_sliding_window": True, "sliding_window": 8}),
    ],
)
def test_settings_of_a_family_change_the_name(family: str, settings: dict[str, Any]) -> None:
    assert named(family, **settings) != named(family)


def test_every_family_and_seed_has_its_own_name() -> None:
    names = [named(family, seed=seed) for family in FAMILIES for seed in (0, 1)]
    assert len(set(names)) == len(names)


def test_what_changes_no_logits_changes_no_name() -> None:
    model = tiny_model(eos_token_id=5, attention_dropout=0.5, use_cache=False)
    model.config.architectures, model.config.name_or_path = ["Another"], "elsewhere"
    model.config.initializer_range = 0.5
    assert fingerprint_model(model) == named()


def adapted(**settings: Any) -> str:
    """The name of the tiny model as if it held an adapter of PEFT, whose weights are always the same."""
    model = tiny_model()
    model.peft_config = {"default": LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], **settings)}
    return fingerprint_model(model)


def test_settings_of_an_adapter_change_the_name() -> None:
    own = adapted(lora_alpha=4)
    assert own == adapted(
        lora_alpha=4, lora_dropout=0.5, base_model_name_or_path="x", inference_mode=True, revision="x"
    )
    assert len({named(), own, adapted(lora_alpha=40), adapted(lora_alpha=4, use_rslora=True)}) == 4


def test_the_start_of_a_name_is_the_same_in_any_precision() -> None:
    whole, rounded = named(), named(dtype=torch.bfloat16)
    assert (len(rounded), without_remainder(rounded)) == (32, rounded)
    assert (len(whole), without_remainder(whole)) == (49, rounded)
    again = tiny_model(dtype=torch.bfloat16).float()
    assert fingerprint_model(again) == rounded


def test_tensors_are_told_apart_by_name_shape_and_function() -> None:
    base = torch.linspace(-1, 1, 1000).bfloat16().float()
    assert fingerprint({"a": base}) == fingerprint({"a": base.bfloat16()}) == fingerprint({"a": base.clone()})
    assert fingerprint({"a": base.view(10, 100).T}) == fingerprint({"a": base.view(10, 100).T.contiguous()})
    others = [{"b": base}, {"a": base.view(10, 100)}, {"a": base * 1.5}, {"a": base, "b": base}, {"a": base.int()}, {}]
    names = {fingerprint({"a": base}), fingerprint({"a": base}, "other settings"), *map(fingerprint, others)}
    assert len(names) == 2 + len(others)


def test_a_tensor_is_read_to_its_end_however_long() -> None:
    long = torch.zeros((1 << 20) + 3)
    names = set()
    for index in (0, (1 << 19) - 1, 1 << 19, 1 << 20, -1):
        long[index] = 0.1 * (1 + len(names))
        names.add(fingerprint({"a": long}))
    assert len(names) == 5


def test_names_of_byheart_0_2_know_values_names_and_shapes_and_not_precision() -> None:
    def name_of(**tensors: Tensor) -> str:
        return sample_fingerprint(tensors, torch.bfloat16, samples=8)

    base = torch.linspace(-1, 1, 1000).bfloat16().float()
    assert name_of(a=base) == name_of(a=base.double()) == name_of(a=base.bfloat16()) == name_of(a=base.clone())
    others = [name_of(b=base), name_of(a=base.view(10, 100)), name_of(a=base * 1.5), name_of(a=base, b=base)]
    assert len({name_of(a=base), *others}) == 5
