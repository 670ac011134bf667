"""The frozen model: what it gives in parts is what it gives as a whole, on every family, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from byheart.errors import UnsupportedModelError, UsageError
from byheart.model.anatomy import keyless_linears, skipped, tap
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.linear import is_transposed, widths
from byheart.model.reading import KV, DenseDelta, LowRankDelta, Reading
from byheart.testing import tiny_backbone, tiny_model
from tests.samples import ALL_FAMILIES, backbone, hooks, logits, tokens, weights_hash

# Not promised, but driven: other ways to pair the components of a key, and to turn only some of them.
MORE: dict[str, dict[str, Any]] = {
    "cohere": {},
    "glm": {"partial_rotary_factor": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5},
    "nemotron": {},
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
TEXT, QUESTION = tokens(14, seed=1), tokens(6, seed=2)


def opened(family: str) -> Backbone:
    return tiny_backbone(family, **MORE[family]) if family in MORE else backbone(family)


every_family = pytest.mark.parametrize("family", ALL_FAMILIES)
more_families = pytest.mark.parametrize("family", [*ALL_FAMILIES, *MORE])


# ---- running ----


@more_families
def test_a_text_in_two_parts_equals_the_whole(family: str) -> None:
    own = opened(family)
    with torch.no_grad():
        whole = own.model(torch.cat([TEXT, QUESTION], dim=1)).logits
        kept = own.prefill(TEXT)
        further = own.prefill(QUESTION[:, :4], kept)
        assert (kept.slots, further.slots) == (14, 4)
        torch.testing.assert_close(logits(own, Reading(kept), QUESTION), whole[:, 14:], rtol=0, atol=1e-5)
        last = logits(own, Reading(kept.append(further)), QUESTION[:, 4:])
        torch.testing.assert_close(last, whole[:, 18:], rtol=0, atol=1e-5)


@more_families
def test_logits_are_the_models_own(family: str) -> None:
    """Scales of Granite and Cohere, the soft cap of Gemma 2."""
    own = opened(family)
    with torch.no_grad():
        torch.testing.assert_close(own.logits(own.hidden(TEXT)), own.model(TEXT).logits, rtol=0, atol=1e-5)
        assert torch.equal(own.hidden(TEXT), own.hidden(embeds=own.embed(TEXT)))


def test_logits_are_float32_in_any_precision() -> None:
    own = backbone("llama", torch.bfloat16)
    with torch.no_grad():
        assert own.hidden(TEXT).dtype == torch.bfloat16
        assert own.logits(own.hidden(TEXT)).dtype == torch.float32


@every_family
def test_finish_is_what_follows_the_last_layer(family: str) -> None:
    own, outputs = backbone(family), []
    with torch.no_grad(), own.layer_outputs(lambda index, hidden: outputs.append(hidden)):
        hidden = own.hidden(TEXT)
    assert len(outputs) == len(own.layers)
    assert torch.equal(own.finish(outputs[-1]), hidden)


@every_family
def test_layer_inputs_can_be_changed(family: str) -> None:
    """What enters the first layer is the embeddings; zeros in place of any layer's input change the answer."""
    own, seen = backbone(family), []

    def look(index: int, hidden: Tensor) -> Tensor:
        seen.append(index)
        return hidden

    with torch.no_grad():
        plain = own.hidden(TEXT)
        with own.layer_inputs(look):
            assert torch.equal(own.hidden(TEXT), plain)
        for zeroed in range(len(own.layers)):
            with own.layer_inputs(lambda index, hidden, z=zeroed: hidden * 0 if index == z else hidden):
                assert (own.hidden(TEXT) - plain).abs().max() > 1e-2
    assert seen == list(range(len(own.layers)))
    assert hooks(own) == []


def test_tokens_and_embeddings_exclude_each_other() -> None:
    own = backbone()
    with pytest.raises(UsageError, match="either tokens or embeds"):
        own.hidden()
    with pytest.raises(UsageError, match="either tokens or embeds"):
        own.hidden(TEXT, embeds=own.embed(TEXT))


# ---- keys and values ----


@more_families
def test_projected_hidden_states_are_the_keys_and_values_that_layers_make(family: str) -> None:
    own, inputs = opened(family), []

    def look(index: int, hidden: Tensor) -> Tensor:
        inputs.append(hidden)
        return hidden

    text = tokens(9, seed=3, batch=2)
    with torch.no_grad():
        cache = PrefixCache(len(own.layers))
        with own.layer_inputs(look):
            own.hidden(text, cache=cache)
        made, projected = cache.rows_from(0), own.project(inputs)
        turned = own.rotate(projected, torch.arange(9))
    for index in range(len(own.layers)):
        torch.testing.assert_close(projected.values[index], made.values[index], rtol=0, atol=1e-5)
        torch.testing.assert_close(turned.keys[index], made.keys[index], rtol=0, atol=1e-5)


@more_families
def test_a_memory_can_be_moved(family: str) -> None:
    """Keys made at positions 100 on, turned back, are those of positions 0 on."""
    own = opened(family)
    with torch.no_grad():
        at_zero, cache = own.prefill(TEXT), PrefixCache(len(own.layers))
        own.hidden(TEXT, cache=cache, positions=torch.arange(100, 114)[None])
        moved = cache.rows_from(0)
        each = [torch.full((14,), -100) for _ in own.layers]
        for steps in (-100, torch.tensor(-100).expand(14), torch.full((1, 14), -100), each):
            back = own.rotate(moved, steps)
            for ours, theirs in zip(back.keys, at_zero.keys, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
            for ours, theirs in zip(back.values, at_zero.values, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_nothing_cannot_be_projected() -> None:
    own = backbone()
    with pytest.raises(UsageError, match="no hidden states to project"):
        own.project([torch.zeros(1, 0, own.dim)] * len(own.layers))


def test_layers_without_positions_are_found() -> None:
    """SmolLM3 has one in four."""
    assert [rotation.pairing for rotation in backbone("smollm3").anatomy.rotations] == ["half", "half", "half", "none"]


def test_pairs_and_parts_are_found() -> None:
    found = {family: opened(family).anatomy.rotations[0] for family in ("llama", *MORE)}
    pairings = {family: (rotation.pairing, len(rotation.frequencies)) for family, rotation in found.items()}
    assert pairings == {
        "llama": ("half", 4),
        "cohere": ("interleaved", 4),
        "glm": ("interleaved", 2),
        "stablelm": ("half", 2),
        "nemotron": ("half", 2),
    }


def test_local_layers_may_turn_at_another_speed() -> None:
    """Gemma 3's sliding layers have another base than the others."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    speeds = [r.frequencies for r in tiny_backbone("gemma3_text", layer_types=kinds).anatomy.rotations]
    assert speeds[0] == speeds[2] != speeds[1]


# ---- readings ----


def delta(own: Backbone, path: str, *, seed: int, batch: int = 1) -> tuple[DenseDelta, LowRankDelta]:
    """The same change twice: whole, and as two factors."""
    linear, generator = own.linear(path), torch.Generator().manual_seed(seed)
    down = torch.randn(batch, 2, linear.in_features, generator=generator) * 0.1
    up = torch.randn(batch, linear.out_features, 2, generator=generator) * 0.1
    return DenseDelta(up @ down), LowRankDelta(down, up)


@pytest.mark.parametrize("kind", [0, 1], ids=["dense", "low rank"])
def test_each_row_has_its_own_change_of_a_linear_layer(kind: int) -> None:
    own, path, x = backbone(), "layers.1.mlp.up_proj", torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    changes = [{path: delta(own, path, seed=1)[kind]}, {}, {path: delta(own, path, seed=2)[kind]}]
    linear = own.linear(path)
    plain = linear(x)
    with torch.no_grad(), own.deltas(changes):
        changed = linear(x)
    for b, seed in ((0, 1), (2, 2)):
        weight = linear.weight + delta(own, path, seed=seed)[0].weight[0]
        torch.testing.assert_close(changed[b], torch.nn.functional.linear(x[b], weight), rtol=0, atol=1e-5)
    assert torch.equal(changed[1], plain[1])
    assert torch.equal(linear(x), plain)
    assert hooks(own) == []


def test_all_rows_with_low_rank_changes_are_one_product() -> None:
    own, path, x = backbone(), "layers.1.mlp.up_proj", torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    dense, low = delta(own, path, seed=3, batch=2)
    with torch.no_grad():
        with own.deltas([{path: dense.row(b)} for b in range(2)]):
            whole = own.linear(path)(x)
        for rows in ([{path: low.row(b)} for b in range(2)], [{path: dense.row(0)}, {path: low.row(1)}]):
            with own.deltas(rows):
                torch.testing.assert_close(own.linear(path)(x), whole, rtol=0, atol=1e-5)


def test_changes_of_different_ranks_share_a_batch() -> None:
    own, path, x = backbone(), "layers.1.mlp.up_proj", torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    low = delta(own, path, seed=3)[1]
    wide = LowRankDelta(torch.cat([low.down, low.down], dim=1), torch.cat([low.up, low.up], dim=2))
    with torch.no_grad(), own.deltas([{path: low}, {path: wide}]):
        mixed = own.linear(path)(x)
    for b, one in enumerate((low, wide)):
        with torch.no_grad(), own.deltas([{path: one}]):
            torch.testing.assert_close(mixed[b], own.linear(path)(x[b : b + 1])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [0, 1], ids=["dense", "low rank"])
def test_rows_that_share_a_change_convert_and_multiply_it_once(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as of an evaluation: five questions of one text, one of another, one of no text, the first text again."""
    own, path = backbone(), "layers.1.mlp.up_proj"
    x = torch.randn(8, 5, 32, generator=torch.Generator().manual_seed(0))
    one, other = (Reading(deltas={path: delta(own, path, seed=seed)[kind]}) for seed in (1, 2))
    rows = [row.deltas for row in [one] * 5 + [other, Reading(), one]]
    each, products, conversions = type(one.deltas[path]), [], []
    call, to = each.__call__, each.to
    monkeypatch.setattr(each, "to", lambda self, dtype: conversions.append(id(self)) or to(self, dtype))
    monkeypatch.setattr(each, "__call__", lambda self, x, row: products.append(len(x)) or call(self, x, row))
    with torch.no_grad():
        with own.deltas(rows):
            together = own.linear(path)(x)
        assert conversions == [id(one.deltas[path]), id(other.deltas[path])]
        assert products == [5, 1, 1]
        for b, row in enumerate(rows):
            with own.deltas([row]):
                torch.testing.assert_close(together[b : b + 1], own.linear(path)(x[b : b + 1]), rtol=0, atol=1e-5)
        products.clear()
        with own.deltas(rows[:5]):
            own.linear(path)(x[:5])
    assert products == [5]


def test_a_wrong_path_is_named_and_leaves_no_hook() -> None:
    own = backbone()
    good = {"layers.0.mlp.up_proj": delta(own, "layers.0.mlp.up_proj", seed=1)[0]}
    bad = {**good, "layers.9.mlp.up_proj": good["layers.0.mlp.up_proj"]}
    with pytest.raises(UsageError, match=r"no module 'layers\.9\.mlp\.up_proj'"), own.deltas([bad]):
        pass
    with pytest.raises(UsageError, match=r"'layers\.0\.mlp' is a LlamaMLP, not a linear layer"):
        own.linear("layers.0.mlp")
    assert hooks(own) == []


def test_hooks_go_when_the_body_fails() -> None:
    own = backbone()
    path = "layers.0.mlp.up_proj"
    reading = Reading(own.prefill(TEXT), {path: delta(own, path, seed=1)[0]})
    before = weights_hash(own)
    inside: list[list[str]] = []
    for context in (
        own.reading([reading]),
        own.layer_inputs(lambda index, hidden: hidden),
        own.layer_outputs(lambda index, hidden: None),
        own.upper(1),
        own.feed_forward_inputs(2),
    ):
        with suppress(ZeroDivisionError), context:
            inside.append(hooks(own))
            raise ZeroDivisionError
    assert all(inside)
    assert hooks(own) == []
    assert weights_hash(own) == before


# ---- running a part again ----


@every_family
@pytest.mark.parametrize("padded", [False, True])
def test_the_upper_layers_can_run_again(family: str, padded: bool) -> None:
    own = backbone(family)
    counts = torch.tensor([[not padded, not padded, *[True] * 12], [True] * 14])
    for start in range(len(own.layers)):
        with torch.no_grad(), own.upper(start) as taken:
            hidden = own.hidden(TEXT.expand(2, -1), mask=counts)
        assert len(taken) == 1
        with torch.no_grad():
            again = own.resume(taken[0])
        torch.testing.assert_close(again[counts], hidden[counts], rtol=0, atol=1e-5)


@every_family
def test_a_layer_is_its_feed_forward_block_and_the_rest(family: str) -> None:
    own = backbone(family)
    for index in range(len(own.layers)):
        outputs: dict[int, Tensor] = {}
        with (
            torch.no_grad(),
            own.feed_forward_inputs(index) as taken,
            own.layer_outputs(outputs.__setitem__),
        ):
            own.hidden(TEXT)
            own.hidden(QUESTION)
        assert [fed.input.shape[1] for fed in taken] == [14, 6]
        where = own.feed_forward(index)
        with torch.no_grad():
            finished = where.finish(taken[1].residual, where.block(taken[1].input))
        torch.testing.assert_close(finished, outputs[index], rtol=0, atol=1e-5)


def test_granites_multiplier_is_measured() -> None:
    assert backbone("granite").feed_forward(1).scale == pytest.approx(0.5, abs=1e-3)
    assert backbone("llama").feed_forward(1).scale == 1.0


@pytest.mark.parametrize(
    ("family", "keys", "values"),
    [
        ("llama", ["gate_proj", "up_proj"], ["down_proj"]),
        ("gemma2", ["gate_proj", "up_proj"], ["down_proj"]),
        ("phi3", ["gate_up_proj"], ["down_proj"]),
        ("nemotron", ["up_proj"], ["down_proj"]),
    ],
)
def test_keys_and_values_of_a_block_are_told_apart(family: str, keys: list[str], values: list[str]) -> None:
    own = opened(family)
    roles = own.feed_forward_roles(1)
    assert {path for path, role in roles.items() if role == "keys"} == {f"layers.1.mlp.{name}" for name in keys}
    assert {path for path, role in roles.items() if role == "values"} == {f"layers.1.mlp.{name}" for name in values}
    rest = own.attention_linears(1)
    assert rest
    assert all(".self_attn." in path for path in rest)
    assert {*rest, *roles} == set(own.linears(1))


def test_blocks_beside_the_attention_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"layer 1 \(CohereDecoderLayer\) has no feed-forward block"):
        opened("cohere").feed_forward(1)


def test_a_mixture_of_experts_is_refused_where_its_parts_are_asked_for() -> None:
    mixed = tiny_backbone("qwen2_moe", **EXPERTS)
    with pytest.raises(UnsupportedModelError, match=r"layer 0's feed-forward block .*mixture of experts"):
        mixed.feed_forward_roles(0)


# ---- models whose keys cannot be moved ----


@pytest.mark.parametrize(
    ("family", "keys", "values"), [("gpt2", "c_fc", "c_proj"), ("gptj", "fc_in", "fc_out"), ("gpt_neox", "", "")]
)
def test_parts_are_found_in_any_list_of_layers_and_beside_the_attention(family: str, keys: str, values: str) -> None:
    own = tiny_backbone(family)
    stack = own.anatomy.stack
    if keys:
        assert own.feed_forward_roles(1) == {f"h.1.mlp.{keys}": "keys", f"h.1.mlp.{values}": "values"}
    assert own.attention_linears(1)
    for path, linear in own.linears(1).items():
        assert path.startswith(f"{stack}.1.")
        assert own.linear(path) is linear
        width, height = widths(linear)
        assert linear(torch.zeros(1, 1, width)).shape == (1, 1, height)
    assert is_transposed(own.linear(next(iter(own.linears(0))))) == (family == "gpt2")


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_where_keys_cannot_be_moved_text_is_read_over_a_cache_and_layers_run_again(family: str) -> None:
    own = tiny_backbone(family)
    assert own.anatomy.rotations == ()
    with torch.no_grad():
        whole = own.model(torch.cat([TEXT, QUESTION], dim=1)).logits[:, TEXT.shape[1] :]
        torch.testing.assert_close(logits(own, Reading(own.prefill(TEXT)), QUESTION), whole, rtol=0, atol=1e-5)
        with own.upper(1) as taken:
            hidden = own.hidden(QUESTION)
        torch.testing.assert_close(own.resume(taken[0]), hidden, rtol=0, atol=1e-6)
        kv = own.prefill(TEXT)
        assert own.rotate(kv, 0) is kv
        with pytest.raises(UnsupportedModelError, match=r"no rotary positions .* such as full, ffn-edit or rome"):
            own.rotate(kv, 1)


def test_positions_that_a_cache_does_not_keep_are_refused() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"BloomModel reads text that continues .* differently from the whole"
    ):
        tiny_backbone("bloom")


def test_matrices_in_no_block_are_refused_where_they_are_asked_for() -> None:
    own = tiny_backbone("opt", ffn_dim=48, word_embed_proj_dim=32)
    with pytest.raises(UnsupportedModelError, match=r"layer 1 \(OPTDecoderLayer\) has its .* in no block of their own"):
        own.feed_forward_roles(1)


# ---- models that are refused ----


def refused(family: str, **settings: Any) -> None:
    small = {"vocab_size": 64, "hidden_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **{**small, **settings})
    Backbone(AutoModelForCausalLM.from_config(config))


DEPTH = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "qwen3_next",
            {**DEPTH, **EXPERTS, "head_dim": 8, "layer_types": ["full_attention", "linear_attention"]},
            r"Qwen3NextDecoderLayer.* layer (index )?1\b.*linear attention",
        ),
        (
            "deepseek_v3",
            {**DEPTH, **LATENT, "num_key_value_heads": 4, "head_dim": 4, "first_k_dense_replace": 2},
            r"layer 0 \(DeepseekV3DecoderLayer\) keeps positions in its values",
        ),
        (
            "llama",
            {**DEPTH, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
            "layer 0 turns its keys differently at position 4096: .*dynamic or long RoPE",
        ),
    ],
)
def test_a_family_that_cannot_be_driven_is_refused_with_its_layer(
    family: str, settings: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        refused(family, **settings)


@pytest.mark.parametrize(("original", "position"), [(64, 127), (1500, 4096)])
def test_long_rope_is_refused_with_its_layer(original: int, position: int) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.5] * 4}
    settings = {"max_position_embeddings": 2048, "original_max_position_embeddings": original, "rope_parameters": rope}
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(UnsupportedModelError, match=f"layer 0 turns its keys differently at position {position}"):
            tiny_backbone("phi3", dtype=dtype, **settings)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_fixed_scaling_is_a_plain_rotation(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    own = tiny_backbone("llama", rope_parameters={**rope, **more})
    with torch.no_grad():
        whole = own.model(torch.cat([TEXT, QUESTION], dim=1)).logits[:, 14:]
        torch.testing.assert_close(logits(own, Reading(own.prefill(TEXT)), QUESTION), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", [131_072, 1_010_000, 1 << 20])
def test_long_contexts_are_not_taken_for_long_rope(positions: int) -> None:
    """A float32 angle far out is off by more than the check allows, unless the position is a power of two."""
    own = tiny_backbone("llama", max_position_embeddings=positions, hidden_size=64, head_dim=64)
    assert own.positions == positions


def test_a_model_without_weights_is_refused() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_model().config)
    with pytest.raises(UnsupportedModelError, match=r"no weights \(device 'meta'\)"):
        Backbone(model)


# ---- identity ----


def test_a_name_is_the_models_in_any_precision_and_the_one_that_byheart_0_2_gave() -> None:
    same, rounded, other = tiny_backbone(), tiny_backbone(dtype=torch.bfloat16), tiny_backbone(seed=1)
    assert same.fingerprint == backbone().fingerprint
    for name in (same.fingerprint, rounded.fingerprint, same.sampled_fingerprint):
        assert same.is_called(name)
        assert not other.is_called(name)
    assert same.sampled_fingerprint == rounded.sampled_fingerprint != other.sampled_fingerprint


def test_weights_changed_after_a_model_was_opened_are_not_taken_for_its_files(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    opened = Backbone.open(str(tmp_path), dtype="float32")
    with torch.no_grad():
        opened.embedding.weight[0, 0] += 1
    again = Backbone.open(str(tmp_path), dtype="float32")
    assert again.fingerprint == tiny_backbone().fingerprint
    assert Backbone(opened.model).fingerprint != again.fingerprint


def test_a_file_that_is_replaced_is_hashed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "cache"))
    tiny_model().save_pretrained(tmp_path)
    first = Backbone.open(str(tmp_path)).fingerprint
    tiny_model(seed=1).save_pretrained(tmp_path)
    assert Backbone.open(str(tmp_path)).fingerprint != first


def test_a_backbone_is_frozen() -> None:
    model = tiny_model().train().requires_grad_(True)
    own = Backbone(model)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert hooks(own) == []


@pytest.mark.parametrize(("ends", "expected"), [(None, []), (7, [7]), ([7, 9], [7, 9])])
def test_stop_tokens_are_the_models(ends: int | list[int] | None, expected: list[int]) -> None:
    own = tiny_backbone()
    own.model.generation_config.eos_token_id = ends
    assert own.stop_tokens == expected


def test_an_assembled_backbone_has_the_weights_it_is_filled_with() -> None:
    source = tiny_model()

    def fill(empty: Mapping[str, Tensor]) -> None:
        for name, parameter in source.named_parameters():
            empty[name].copy_(parameter)

    config = {name: value for name, value in source.config.to_dict().items() if value is not None}
    made = Backbone.assembled(config, fill, dtype="float32", device="cpu", source="made")
    assert made.fingerprint == backbone().fingerprint
    with torch.no_grad():
        torch.testing.assert_close(made.hidden(TEXT), backbone().hidden(TEXT))


# ---- what keys do not need ----


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_hidden_states_are_projected_without_queries(family: str) -> None:
    """Phi-3 has one linear layer for queries, keys and values; it is left as it is."""
    own = backbone(family)
    layer, arguments = own.layers[1], own.anatomy.arguments[1]
    hidden = torch.randn(2, 5, own.dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = keyless_linears(layer, arguments, hidden[:1], 1)
        names = [name for name, module in layer.named_modules() if any(module is linear for linear in found)]
        assert names == ([] if family == "phi3" else ["self_attn.q_proj"])
        with skipped(found):
            ours = tap(layer, arguments, hidden, 1)
        assert all(map(torch.equal, ours, tap(layer, arguments, hidden, 1)))
    assert hooks(own) == []


def test_a_skipped_layer_computes_one_token() -> None:
    own, rows = backbone(), []
    linear = own.linear("layers.0.self_attn.q_proj")
    with torch.no_grad(), skipped([linear]):
        handle = linear.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[1]))
        out = linear(torch.ones(2, 7, own.dim))
        handle.remove()
    assert rows == [1]
    assert out.shape[:2] == (2, 7)


def test_slots_of_upper_layers_are_rotated_by_their_own_layers() -> None:
    own = backbone()
    kv = own.prefill(tokens(6, seed=4))
    upper = KV(kv.keys[1:], kv.values[1:])
    torch.testing.assert_close(own.rotate(upper, 5, start=1).keys, own.rotate(kv, 5).keys[1:])
