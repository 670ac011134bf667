"""What the published systems computed on tiny models, tensor for tensor.

The folder that BYHEART_GOLDEN names (``tests/golden`` without it) is searched for folders of the three layouts, known
by what they hold; every shape, length and setting comes from their files, so other outputs of the same layouts can be
tried in their place. ``tests/golden/README.md`` says what the files hold.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from byheart import Backbone, Reading
from byheart.errors import CheckpointError, ModelError, UnknownNameError, UsageError
from byheart.methods.compressed_kv import CompressedKV
from byheart.methods.last_ffn import LastFFN
from byheart.methods.latent_pool import LatentPool
from byheart.model.loading import empty_model, open_model
from byheart.protocol.checkpoint import load_pretrained, read_card, save_pretrained
from byheart.protocol.state import State, stack
from byheart.published import ccm, memoryllm
from tests.samples import ROOT

GOLDEN = Path(os.environ.get("BYHEART_GOLDEN") or ROOT / "tests" / "golden")
TOLERANCE = 1e-4


def kind_of(folder: Path) -> str | None:
    if (folder / "config.json").exists():
        config = json.loads((folder / "config.json").read_text())
        if "num_ltm_blocks" in config:
            return "mplus"
        return "memoryllm" if "num_blocks" in config else None
    if (folder / "adapter" / "adapter_config.json").exists():
        return "ccm"
    return "fastmem" if "span" in load_file(folder / "expected.safetensors") else None


FOLDERS = sorted(path.parent for path in GOLDEN.rglob("expected.safetensors"))
KINDS = {folder: kind_of(folder) for folder in FOLDERS}


def of_kind(kind: str, *, holding: str | None = None) -> pytest.MarkDecorator:
    found = [folder for folder in FOLDERS if KINDS[folder] == kind]
    if holding is not None:
        found = [folder for folder in found if holding in load_file(folder / "expected.safetensors")]
    return pytest.mark.parametrize("folder", found, ids=[folder.name for folder in found])


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def logits(backbone: Backbone, tokens: Tensor, readings: list[Reading]) -> Tensor:
    with torch.no_grad(), backbone.reading(readings) as cache:
        return backbone.logits(backbone.hidden(tokens, cache=cache))


def test_all_folders_are_known() -> None:
    assert FOLDERS
    assert all(KINDS.values()), KINDS


# ---- MemoryLLM ----


def pool_of(folder: Path) -> LatentPool:
    return memoryllm(folder, dtype="float32", device="cpu", keep_hidden=True)


def updates(method: LatentPool, expected: dict[str, Tensor]) -> list[State]:
    """The states after each recorded update; what was written is the text whose rows became the newest."""
    states: list[State] = []
    state = method.init()
    while (kept := expected.get(f"kept_indices_{len(states) + 1}")) is not None:
        newest = expected[f"memory_after_{len(states) + 1}"][None, :, -method.slots :]
        texts = [expected[f"{name.removeprefix('delta_')}_ids"] for name in expected if name.startswith("delta_")]
        deltas = [method.dry_run(state, text) for text in texts]
        delta = min(deltas, key=lambda one: float((one - newest).abs().max()))
        state = method.renew(state, delta, kept)
        states.append(state)
    return states


def stock_generate(method: LatentPool, state: State, prompt: Tensor, total: int) -> Tensor:
    backbone = method.backbone
    with torch.no_grad(), backbone.reading([method.read(state)]) as cache:
        held = cache.get_seq_length()
        mask = torch.ones(1, held + prompt.shape[1], dtype=torch.long)
        return backbone.model.generate(
            prompt,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=total - prompt.shape[1],
            pad_token_id=0,
            **{backbone.anatomy.cache_argument: cache},
        )


@of_kind("memoryllm")
@torch.no_grad()
def test_memoryllm_writes_what_the_published_code_writes(folder: Path) -> None:
    method, expected = pool_of(folder), load_file(folder / "expected.safetensors")
    state = method.init()
    deltas = [name for name in expected if name.startswith("delta_")]
    assert deltas
    for name in deltas:
        same(method.dry_run(state, expected[f"{name.removeprefix('delta_')}_ids"]), expected[name])
    states = updates(method, expected)
    assert states
    for number, after in enumerate(states, start=1):
        same(method.pool(after)[0], expected[f"memory_after_{number}"])


@of_kind("memoryllm")
@torch.no_grad()
def test_memoryllm_reads_what_the_published_code_reads(folder: Path) -> None:
    method, expected = pool_of(folder), load_file(folder / "expected.safetensors")
    prompt, state = expected["prompt_ids"], method.init()
    same(logits(method.backbone, prompt, [method.read(state)]), expected["logits_before"])
    for number, after in enumerate(updates(method, expected), start=1):
        same(logits(method.backbone, prompt, [method.read(after)]), expected[f"logits_after_{number}"])
        if f"generated_after_{number}" in expected:
            generated = expected[f"generated_after_{number}"]
            assert stock_generate(method, after, prompt, generated.shape[1]).tolist() == generated.tolist()


@of_kind("memoryllm", holding="logits_batch")
@torch.no_grad()
def test_memoryllm_reads_a_batch_of_prompts(folder: Path) -> None:
    method, expected = pool_of(folder), load_file(folder / "expected.safetensors")
    prompts, state = expected["batch_prompt_ids"], method.init()
    each = [method.read(state)] * prompts.shape[0]
    same(logits(method.backbone, prompts, each), expected["logits_batch"])
    together = method.read(stack([state] * prompts.shape[0]))
    same(logits(method.backbone, prompts, [together]), expected["logits_batch"])


@of_kind("memoryllm")
@torch.no_grad()
def test_rows_of_a_mixed_batch_equal_rows_alone(folder: Path) -> None:
    method, expected = pool_of(folder), load_file(folder / "expected.safetensors")
    prompt = expected["prompt_ids"]
    readings = [method.read(method.init()), Reading(), method.read(updates(method, expected)[0])]
    together = logits(method.backbone, prompt.expand(3, -1), readings)
    for row, reading in enumerate(readings):
        same(together[row : row + 1], logits(method.backbone, prompt, [reading]))


@of_kind("memoryllm")
def test_memoryllm_uses_the_pool_of_its_file(folder: Path) -> None:
    method, stored = pool_of(folder), load_file(folder / "model.safetensors")
    assert method.initial is not None
    assert torch.equal(method.initial, stored["memory"])
    assert torch.equal(method.first.detach(), stored["bos_embedding"])
    assert torch.equal(method.mark.detach(), stored["new_memory_positional_emb"].flatten())
    kept = load_file(folder / "expected.safetensors")["kept_indices_1"]
    assert method.forget == ("layer" if kept.dim() == 2 else "shared")


@of_kind("memoryllm")
@torch.no_grad()
def test_memoryllm_kept_in_byhearts_own_format_reads_the_same(folder: Path, tmp_path: Path) -> None:
    method, expected = pool_of(folder), load_file(folder / "expected.safetensors")
    save_pretrained(method, tmp_path)
    again = LatentPool(method.backbone, **method.options())
    load_pretrained(again, tmp_path)
    same(logits(again.backbone, expected["prompt_ids"], [again.read(again.init())]), expected["logits_before"])


# ---- MemoryLLM's files ----


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A copy that a test may spoil: the last MemoryLLM folder, the 8B."""
    folders = [folder for folder in FOLDERS if KINDS[folder] == "memoryllm"]
    if not folders:
        pytest.skip("there is no MemoryLLM folder")
    return Path(shutil.copytree(folders[-1], tmp_path / "released"))


def change(folder: Path, **tensors: Tensor | None) -> None:
    """Put tensors into a folder's file, or take out those that are None; dots are written as two underscores."""
    stored = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        stored.pop(name.replace("__", "."), None)
        if tensor is not None:
            stored[name.replace("__", ".")] = tensor
    save_file(stored, folder / "model.safetensors")


def in_shards(folder: Path, count: int, *, ending: str) -> dict[str, str]:
    """Write a folder's tensors as ``count`` files and an index; gives the index."""
    stem = "model" if ending == "safetensors" else "pytorch_model"
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {
        name: f"{stem}-{number % count + 1:05}-of-{count:05}.{ending}" for number, name in enumerate(sorted(stored))
    }
    for file in set(where.values()):
        part = {name: stored[name] for name in stored if where[name] == file}
        save_file(part, folder / file) if ending == "safetensors" else torch.save(part, folder / file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_give_the_same_logits(released: Path, ending: str) -> None:
    expected = load_file(released / "expected.safetensors")
    in_shards(released, 3, ending=ending)
    method = pool_of(released)
    with torch.no_grad():
        same(logits(method.backbone, expected["prompt_ids"], [method.read(method.init())]), expected["logits_before"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bin_file_gives_the_same_logits(released: Path, zipped: bool) -> None:
    expected, stored = (load_file(released / f"{name}.safetensors") for name in ("expected", "model"))
    (released / "model.safetensors").unlink()
    torch.save(stored, released / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    method = pool_of(released)
    with torch.no_grad():
        same(logits(method.backbone, expected["prompt_ids"], [method.read(method.init())]), expected["logits_before"])


def test_bfloat16_keeps_rotary_frequencies_and_lora_in_float32(released: Path) -> None:
    method = memoryllm(released, dtype="bfloat16", device="cpu")
    assert {p.dtype for p in method.backbone.model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in method.backbone.model.buffers()} == {torch.float32}
    assert method.writing is None or {p.dtype for p in method.writing.parameters()} == {torch.float32}


def test_an_unfilled_pool_is_not_read(released: Path) -> None:
    change(released, initialized=torch.tensor(0, dtype=torch.uint8))
    method = pool_of(released)
    assert method.initial is None
    assert method.read(method.init()).slots == 1


def test_rotary_buffers_in_a_file_are_ignored(released: Path) -> None:
    change(released, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    assert pool_of(released).initial is not None


def test_a_missing_tensor_is_named(released: Path) -> None:
    change(released, model__layers__0__self_attn__o_proj__weight=None, memory=None)
    with pytest.raises(CheckpointError, match=r"missing: .*o_proj\.weight, memory\."):
        pool_of(released)


def test_a_missing_adapter_is_named(released: Path) -> None:
    stored = load_file(released / "model.safetensors")
    adapter = [name for name in stored if ".decoder_adapter." in name]
    if not adapter:
        pytest.skip("this model has no adapters")
    save_file({name: tensor for name, tensor in stored.items() if name not in adapter}, released / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"missing: .*decoder_adapter.* and {len(adapter) - 10} more"):
        pool_of(released)


def test_an_unexpected_tensor_is_named(released: Path) -> None:
    change(released, odd__0=torch.zeros(2, 2))
    with pytest.raises(CheckpointError, match=r"unexpected: odd\.0\."):
        pool_of(released)


def test_a_wrong_shape_is_named(released: Path) -> None:
    change(released, memory=torch.zeros(1, 2, 3))
    with pytest.raises(CheckpointError, match=r"wrong shape: memory \(1, 2, 3\) instead of \("):
        pool_of(released)


def test_a_missing_setting_is_named(released: Path) -> None:
    config = json.loads((released / "config.json").read_text())
    (released / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "num_blocks"}))
    with pytest.raises(CheckpointError, match="lacks num_blocks"):
        pool_of(released)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json' cannot be read"):
        memoryllm(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        memoryllm(tmp_path)


def test_a_folder_without_weights_is_refused(released: Path) -> None:
    (released / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        pool_of(released)


def test_a_broken_file_is_refused(released: Path) -> None:
    (released / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        pool_of(released)


def test_a_shard_that_lacks_what_the_index_says_is_refused(released: Path) -> None:
    where = in_shards(released, 2, ending="safetensors")
    save_file({"bos_embedding": torch.zeros(1)}, released / where["memory"])
    with pytest.raises(CheckpointError, match="which the index says it holds"):
        pool_of(released)


def test_a_bin_file_that_runs_code_is_refused(released: Path) -> None:
    (released / "model.safetensors").unlink()
    torch.save({"memory": Path("/")}, released / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        pool_of(released)
    torch.save([torch.zeros(1)], released / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="something other than named tensors"):
        pool_of(released)


@of_kind("fastmem")
def test_an_empty_model_has_the_buffers_of_an_opened_one(folder: Path) -> None:
    opened = open_model(str(folder / "base"), dtype="bfloat16", device="cpu")
    empty = empty_model(opened.config.to_dict(), dtype="bfloat16", device="cpu")
    made = dict(empty.named_buffers())
    assert made
    for name, buffer in opened.named_buffers():
        assert torch.equal(buffer, made[name])
    assert {n: (p.shape, p.dtype) for n, p in opened.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in empty.named_parameters()
    }
    tied = empty_model({**opened.config.to_dict(), "tie_word_embeddings": True}, dtype="float32", device="cpu")
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def test_a_config_of_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match="No model can be made of this config"):
        empty_model({"model_type": "nonesuch"})


# ---- CCM ----


def adapter_of(folder: Path, *, sink: bool = False) -> CompressedKV:
    merge = json.loads((folder / "base" / "config.json").read_text())["attn_type"]
    return ccm(folder / "adapter", base=folder / "base", merge=merge, sink=sink, dtype="float32", device="cpu")


def turns_of(expected: dict[str, Tensor]) -> list[Tensor]:
    names = sorted((name for name in expected if re.fullmatch(r"turn_\d+", name)), key=lambda n: int(n[5:]))
    return [expected[name].view(1, -1) for name in names]


def written(method: CompressedKV, segments: list[Tensor]) -> State:
    state = method.init()
    for segment in segments:
        state = method.write(state, segment)
    return state


@of_kind("ccm", holding="query_logits")
@pytest.mark.parametrize("sink", [False, True], ids=["plain", "sink"])
@torch.no_grad()
def test_ccm_keeps_what_the_published_code_keeps(folder: Path, sink: bool) -> None:
    expected, end = load_file(folder / "expected.safetensors"), "_sink" if sink else ""
    method = adapter_of(folder, sink=sink)
    state = written(method, turns_of(expected))
    assert state["tokens"].tolist() == expected[f"pos_id_offset{end}"].tolist()
    for layer in range(len(method.backbone.layers)):
        same(state[f"keys.{layer}"], expected[f"memory_k_{layer}{end}"])
        same(state[f"values.{layer}"], expected[f"memory_v_{layer}{end}"])
    query = expected["query"].view(1, -1)
    same(logits(method.backbone, query, [method.read(state)]), expected[f"query_logits{end}"])


def segments_of(ids: list[int], words: int) -> tuple[list[slice], slice]:
    """Where each segment's text stands among ids in which those from ``words`` on are markers, and the last text."""
    texts = [slice(*match.span()) for match in re.finditer("t+", "".join("t" if i < words else "m" for i in ids))]
    return texts[:-1], texts[-1]


@torch.no_grad()
def compressing(method: CompressedKV, state: State, text: Tensor) -> Tensor:
    """Logits at a segment's tokens and its compression tokens, while ``state`` is what was kept of those before."""
    backbone = method.backbone
    seen = method.read(state) if method.recurrent or method.sink else Reading()
    if not method.recurrent and seen.prefix is not None:
        # Without recurrence a segment sees the sink alone, as far away as it stands in the text.
        alone = {**state, **{n: t[:, :, :1] for n, t in state.items() if n.startswith(("keys.", "values."))}}
        seen = method.read(alone)
    embeds = torch.cat([backbone.embed(text), method.embeddings[None]], dim=1)
    gate = slice(text.shape[1], None)
    with backbone.reading([seen]) as cache, method.lora.active(backbone, gate=gate):
        return backbone.logits(backbone.hidden(embeds=embeds, cache=cache))


@of_kind("ccm")
@torch.no_grad()
def test_ccm_equals_one_masked_pass_over_all_segments(folder: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    ids, parallel = expected["parallel_ids"], expected["parallel_logits"]
    # Where the first token stays visible to the last, the mask was made with a sink.
    method = adapter_of(folder, sink=bool(expected["parallel_mask"][0, 0, -1, 0]))
    segments, query = segments_of(ids[0].tolist(), method.backbone.config.vocab_size)
    assert segments
    state = method.init()
    for place in segments:
        text = ids[:, place]
        columns = slice(place.start, place.stop + method.tokens)
        same(compressing(method, state, text), parallel[:, columns])
        state = method.write(state, text)
    same(logits(method.backbone, ids[:, query], [method.read(state)]), parallel[:, query])


# ---- CCM's files ----

ADAPTERS = [folder for folder in FOLDERS if KINDS[folder] == "ccm"]
needs_adapter = pytest.mark.skipif(not ADAPTERS, reason="there is no CCM folder")


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path]:
    """An adapter that a test may spoil, under a name as published, and its base."""
    folder = ADAPTERS[0]
    merge = json.loads((folder / "base" / "config.json").read_text())["attn_type"]
    name = f"llama-7b-no-online-{merge}-ntok{adapter_of(folder).tokens}-sink_pajama"
    return as_bin(folder / "adapter", tmp_path / name), folder / "base"


def as_bin(source: Path, target: Path) -> Path:
    """A copy of an adapter whose tensors are in ``pytorch_model.bin``."""
    shutil.copytree(source, target)
    if (target / "model.safetensors").exists():
        torch.save(load_file(target / "model.safetensors"), target / "pytorch_model.bin")
        (target / "model.safetensors").unlink()
    return target


def respell(folder: Path, old: str, new: str) -> dict[str, Tensor]:
    """A folder's tensors with other names; the file stays as it is."""
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    return {name.replace(old, new): tensor for name, tensor in stored.items()}


@needs_adapter
def test_ccm_is_told_by_its_folders_name(trained: tuple[Path, Path]) -> None:
    method = ccm(trained[0], base=trained[1], dtype="float32", device="cpu")
    given = adapter_of(ADAPTERS[0], sink=True)
    assert method.options() == given.options()
    assert method.fingerprint == given.fingerprint
    assert method.sink
    assert not ccm(trained[0], base=trained[1], sink=False, device="cpu").sink


@needs_adapter
@pytest.mark.parametrize(
    ("above", "name", "tokens", "before", "answer"),
    [
        ("unified/finetune", "llama-7b-no", 128, "\nA: ", "\nOutput:"),
        ("pretrain", "llama-7b-no", 64, "\n", "\nOutput:"),
        ("metaicl/finetune", "llama-7b-no", 256, "\nInput: ", "\nOutput:"),
        ("dialog", "llama-7b-no", 128, "\nA: ", "\nA:"),
        ("pretrain", "llama-2-7b-chat", 64, "\nUser: ", "\nAssistant:"),
    ],
)
def test_ccm_is_read_as_it_was_trained_by_the_names_above(
    trained: tuple[Path, Path], tmp_path: Path, above: str, name: str, tokens: int, before: str, answer: str
) -> None:
    """A file is cut into segments, and the form of the data is kept with what is imported."""
    adapter = tmp_path / above / trained[0].name.replace("llama-7b-no", name)
    adapter.parent.mkdir(parents=True)
    trained[0].rename(adapter)
    method = ccm(adapter, base=trained[1], dtype="float32", device="cpu")
    assert method.segment_tokens == tokens
    assert (method.prompt_format["before"], method.prompt_format["answer"]) == (before, answer)
    assert method.prompt_format["opening"].startswith("System:") == ("chat" in name)
    assert ccm(adapter, base=method.backbone, dataset="soda", segment_tokens=7).segment_tokens == 7
    with pytest.raises(UnknownNameError, match=r"no data set of CCM 'sodas'\. Did you mean 'soda'"):
        ccm(adapter, base=method.backbone, dataset="sodas")
    save_pretrained(method, tmp_path / "kept")
    assert read_card(tmp_path / "kept")["prompt_format"] == method.prompt_format


@needs_adapter
def test_ccm_of_unknown_data_has_the_models_own_form(trained: tuple[Path, Path]) -> None:
    method = ccm(trained[0], base=trained[1], dtype="float32", device="cpu")
    assert (method.prompt_format, method.segment_tokens) == ({}, 128)


@needs_adapter
def test_ccm_takes_legacy_names_safetensors_and_an_open_backbone(trained: tuple[Path, Path]) -> None:
    adapter, base = trained
    opened = Backbone.open(str(base), dtype="float32", device="cpu")
    before = ccm(adapter, base=opened)
    save_file(respell(adapter, "comp_embeddings", "gist_embeddings"), adapter / "model.safetensors")
    (adapter / "pytorch_model.bin").unlink()
    after = ccm(adapter, base=opened)
    assert after.backbone is opened
    assert after.fingerprint == before.fingerprint


@needs_adapter
def test_ccm_keeps_lora_and_embeddings_in_float32(trained: tuple[Path, Path]) -> None:
    method = ccm(trained[0], base=trained[1], dtype="bfloat16", device="cpu")
    assert method.backbone.dtype == torch.bfloat16
    assert {p.dtype for p in method.parameters()} == {torch.float32}


@needs_adapter
def test_a_name_that_does_not_tell_is_refused(trained: tuple[Path, Path]) -> None:
    adapter, base = trained
    plain = adapter.rename(adapter.parent / "concat_recur_adapter")
    with pytest.raises(UsageError, match="'concat_recur_adapter' does not say how segments are joined"):
        ccm(plain, base=base)
    with pytest.raises(UnknownNameError, match="Did you mean 'concat_recur'"):
        ccm(plain, base=base, merge="concat_recurr")


@needs_adapter
def test_a_name_of_another_count_is_refused(trained: tuple[Path, Path]) -> None:
    adapter, base = trained
    renamed = adapter.rename(adapter.parent / "llama-7b-online-concat_recur-ntok31")
    with pytest.raises(CheckpointError, match=r"does not fit its name.* not what 31 compression tokens"):
        ccm(renamed, base=base)


@needs_adapter
def test_an_odd_number_of_rows_cannot_be_a_merging_adapter(trained: tuple[Path, Path]) -> None:
    adapter, base = trained
    stored = respell(adapter, "", "")
    name = next(name for name in stored if "comp_embeddings" in name)
    torch.save({**stored, name: stored[name][:1]}, adapter / "pytorch_model.bin")
    plain = adapter.rename(adapter.parent / "adapter")
    with pytest.raises(CheckpointError, match="any number of compression tokens"):
        ccm(plain, base=base, merge="merge")


@needs_adapter
def test_an_adapter_that_does_not_fit_is_refused(trained: tuple[Path, Path]) -> None:
    adapter, base = trained
    stored = respell(adapter, "", "")
    torch.save(respell(adapter, "layers.0.", "layers.99."), adapter / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"missing: .*layers\.0.*unexpected: .*layers\.99"):
        ccm(adapter, base=base)
    name = next(name for name in stored if "lora_A" in name)
    torch.save({**stored, name: stored[name][:, :-1]}, adapter / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"wrong shape: {re.escape(name)}"):
        ccm(adapter, base=base)
    torch.save({name: stored[name]}, adapter / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="it is no CCM adapter"):
        ccm(adapter, base=base)


@pytest.fixture
def first_step(tmp_path: Path) -> Path:
    """A LoRA of the first training step: the second's file without its compression tokens."""
    source = ADAPTERS[0] / "adapter"
    folder = as_bin(source, tmp_path / "llama-7b-no")
    stored = respell(folder, "", "")
    torch.save({n: t for n, t in stored.items() if "embeddings" not in n}, folder / "pytorch_model.bin")
    return folder


@needs_adapter
def test_base_lora_is_merged_into_the_base(trained: tuple[Path, Path], first_step: Path) -> None:
    adapter, base = trained
    plain = ccm(adapter, base=base, dtype="float32", device="cpu").backbone
    merged = ccm(adapter, base=base, base_lora=first_step, dtype="float32", device="cpu").backbone
    stored = respell(first_step, "base_model.model.model.", "")
    card = json.loads((first_step / "adapter_config.json").read_text())
    changed = {path for path in merged.linears(0) if path.endswith(tuple(card["target_modules"]))}
    assert changed
    for path, linear in merged.linears(0).items():
        expected = plain.linear(path).weight.clone()
        if path in changed:
            up, down = stored[f"{path}.lora_B.weight"], stored[f"{path}.lora_A.weight"]
            expected += card["lora_alpha"] / card["r"] * up @ down
        torch.testing.assert_close(linear.weight.detach(), expected)
    assert merged.fingerprint != plain.fingerprint


@needs_adapter
def test_base_lora_does_not_change_an_open_backbone(trained: tuple[Path, Path], first_step: Path) -> None:
    opened = Backbone.open(str(trained[1]), dtype="float32", device="cpu")
    with pytest.raises(UsageError, match="base_lora would change a backbone that is open already"):
        ccm(trained[0], base=opened, base_lora=first_step)


@needs_adapter
def test_base_lora_that_does_not_fit_is_refused(trained: tuple[Path, Path], first_step: Path) -> None:
    torch.save(respell(first_step, "q_proj", "p_proj"), first_step / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"missing: .*q_proj.*unexpected: .*p_proj"):
        ccm(trained[0], base=trained[1], base_lora=first_step)


# ---- FastMem ----


def settings_of(expected: dict[str, Tensor]) -> list[str]:
    return sorted({name.split("/")[0] for name in expected if re.match(r"lr.*/", name)})


@of_kind("fastmem")
def test_fastmem_tunes_as_published(folder: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    backbone = Backbone.open(str(folder / "base"), dtype="float32", device="cpu")
    start, stop = expected["span"].tolist()
    assert settings_of(expected)
    for setting in settings_of(expected):
        rate, kl, steps = re.fullmatch(r"lr([\d.e+-]+)_kl([\d.e+-]+)_n(\d+)", setting).groups()
        method = LastFFN(backbone, learning_rate=float(rate), kl=float(kl), steps=int(steps), keep_text=False)
        tuned = method.tune(expected["context_ids"][:, :stop], start=start)
        same(torch.tensor(tuned.losses), expected[f"{setting}/losses"])
        same(torch.tensor(tuned.divergences), expected[f"{setting}/kls"])
        for path, delta in tuned.deltas.items():
            same(backbone.linear(path).weight + delta, expected[f"{setting}/model.{path}.weight"])
        state = {f"delta.{path}": delta[None] for path, delta in tuned.deltas.items()}
        found = logits(backbone, expected["query_ids"], [method.read(state)])
        same(found, expected[f"{setting}/query_logits"])
