"""Two models, or two tokenizers, that differ in one thing: a memory of the one must not open over the other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from byheart import load, open_state
from byheart.errors import ModelError, StateMismatchError
from byheart.protocol import peft
from byheart.testing import tiny_model
from tests.conftest import CAT, tiny_tokenizer
from tests.faults.attack import Attack, Try, refused

Edit = Callable[[Path, Random], str]
"""Change a model's folder; says what was changed."""

# ---- weights ----


def _tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def _keep(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def _weights(change: Callable[[Tensor, Random], str], *, matrices: bool = False) -> Edit:
    """An edit of one tensor, in place; of a matrix where it needs one."""

    def edit(folder: Path, random: Random) -> str:
        tensors = _tensors(folder)
        name = random.choice(sorted(name for name, t in tensors.items() if t.dim() == 2 or not matrices))
        said = change(tensors[name], random)
        _keep(folder, tensors)
        return f"{name} {said}"

    return edit


def _cell(tensor: Tensor, random: Random) -> str:
    flat = tensor.view(-1)
    cell = random.choice([0, flat.numel() - 1, flat.numel() // 2, random.randrange(flat.numel())])
    amount = random.choice([0.5, 40.0, 1e-3, 1e-6])
    while flat[cell] + amount == flat[cell]:
        amount *= 2
    flat[cell] += amount
    return f"cell {cell} + {amount}"


def _last_bit(tensor: Tensor, random: Random) -> str:
    bits, cell = tensor.view(-1).view(torch.int32), random.randrange(tensor.numel())
    bits[cell] ^= 1
    return f"cell {cell}, last bit"


def _column(tensor: Tensor, random: Random) -> str:
    column = random.randrange(1, tensor.shape[1])
    tensor[:, column] += 0.5
    return f"column {column}"


def _row(tensor: Tensor, random: Random) -> str:
    row = random.randrange(tensor.shape[0])
    tensor[row] *= 1.01
    return f"row {row}"


def _swap(tensor: Tensor, random: Random) -> str:
    first, second = random.sample(range(tensor.shape[0]), 2)
    tensor[[first, second]] = tensor[[second, first]].clone()
    return f"rows {first} and {second} swapped"


def _rank_one(tensor: Tensor, random: Random) -> str:
    generator = torch.Generator().manual_seed(random.getrandbits(30))
    left, right = (torch.randn(size, generator=generator) for size in tensor.shape)
    tensor += random.choice([0.1, 1e-4]) * torch.outer(left, right)
    return "of rank one"


def _noise(tensor: Tensor, random: Random) -> str:
    """On all values but those that 256 even samples see."""
    flat = tensor.view(-1)
    noise = 0.5 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(random.getrandbits(30)))
    noise[:: max(1, flat.numel() // 256)] = 0
    noise[-1] += noise.abs().sum() == 0
    flat += noise
    return "noise between samples"


def _all(folder: Path, random: Random) -> str:
    scale = random.choice([1 + 1e-6, 1.001])
    _keep(folder, {name: tensor * scale for name, tensor in _tensors(folder).items()})
    return f"all x {scale}"


_WEIGHTS = (
    *(_weights(_cell), _weights(_cell), _weights(_last_bit), _weights(_column, matrices=True)),
    *(_weights(_row, matrices=True), _weights(_swap, matrices=True), _weights(_rank_one, matrices=True)),
    *(_weights(_noise), _all),
)

# ---- settings ----

# Of each family: what decides its function besides its weights, and other values for it.
_SETTINGS: dict[str, dict[str, list[Any]]] = {
    "llama": {
        "rms_norm_eps": [1e-5, 1e-2, 0.1],
        "hidden_act": ["gelu", "relu", "gelu_pytorch_tanh"],
        "rope_parameters": [
            {"rope_type": "default", "rope_theta": 500000.0},
            {"rope_type": "default", "rope_theta": 10001.0},
            {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
            {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128},
            {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        ],
        "num_attention_heads": [2],
        "bos_token_id": [40, 0],
    },
    "mistral": {"sliding_window": [8, 16, 300], "rms_norm_eps": [1e-3]},
    "granite": {
        "logits_scaling": [2.0, 4.5],
        "residual_multiplier": [0.4, 1.0],
        "embedding_multiplier": [1.0, 2.5],
        "attention_multiplier": [0.1, 2.0],
    },
    "gemma2": {
        "final_logit_softcapping": [5.0, 1.0],
        "attn_logit_softcapping": [5.0, 1.0],
        "query_pre_attn_scalar": [16, 64],
        "sliding_window": [8, 32],
    },
    "qwen3": {"rms_norm_eps": [1e-2], "hidden_act": ["relu"]},
    "smollm3": {"no_rope_layers": [[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]]},
}


def _setting(folder: Path, random: Random) -> str:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    choices = _SETTINGS[config["model_type"]]
    key = random.choice(sorted(choices))
    value = random.choice([value for value in choices[key] if value != config.get(key)])
    if key == "num_attention_heads":
        # As many weights, cut into heads in another way.
        config |= {"num_key_value_heads": 1, "head_dim": 16}
    path.write_text(json.dumps({**config, key: value}))
    return f"{config['model_type']} {key} {value}"


def _stops(folder: Path, random: Random) -> str:
    """Other tokens that end an answer."""
    path = folder / "generation_config.json"
    value = random.choice([[2, 40], [2, 7, 41], 40])
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": value}))
    return f"eos_token_id {value}"


def _scale(folder: Path, random: Random) -> str:
    """Another scale of the adapter's update."""
    path = folder / "adapter_config.json"
    key, value = random.choice([("lora_alpha", 40), ("lora_alpha", 4.5), ("use_rslora", True)])
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    return f"{key} {value}"


# ---- tokenizers ----


def _tokenizer(change: Callable[[dict[str, Any], Random], str]) -> Edit:
    def edit(folder: Path, random: Random) -> str:
        path = folder / "tokenizer.json"
        stored = json.loads(path.read_text())
        said = change(stored, random)
        path.write_text(json.dumps(stored))
        return f"tokenizer {said}"

    return edit


def _letters(stored: dict[str, Any], random: Random) -> str:
    vocabulary = stored["model"]["vocab"]
    first, second = random.sample("abcdefghijklmnopqrstuvwxyz", 2)
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    return f"{first} and {second} swapped"


def _normalizer(stored: dict[str, Any], random: Random) -> str:
    kinds = [{"type": "Lowercase"}, {"type": "NFKC"}, {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}]
    stored["normalizer"] = random.choice([*kinds, {"type": "Strip", "strip_left": True, "strip_right": True}])
    return f"normalizer {stored['normalizer']['type']}"


def _pre_tokenizer(stored: dict[str, Any], random: Random) -> str:
    kinds = [{"type": "Digits", "individual_digits": True}, {"type": "WhitespaceSplit"}, {"type": "Whitespace"}]
    stored["pre_tokenizer"] = random.choice(kinds)
    return f"pre-tokenizer {stored['pre_tokenizer']['type']}"


def _post_processor(stored: dict[str, Any], random: Random) -> str:
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    stored["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    return "begins with <s>"


def _merges(stored: dict[str, Any], random: Random) -> str:
    stored["model"]["merges"] = stored["model"].get("merges", [])[1:]
    return "a merge fewer"


def _added(stored: dict[str, Any], random: Random) -> str:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    stored["added_tokens"].append(
        {"id": stored["model"]["vocab"]["q"], "content": random.choice(["at", "cat"]), **flags}
    )
    return "an added token"


def _decoder(stored: dict[str, Any], random: Random) -> str:
    stored["decoder"] = random.choice([{"type": "WordPiece", "prefix": "##", "cleanup": True}, None])
    return "decoder"


def _chat_template(folder: Path, random: Random) -> str:
    path = folder / "chat_template.jinja"
    old, new = random.choice(
        [("<|end|>", "<|end|>\n"), ("m.role", "m.role[:1]"), ("<|end|>", ""), ("<|assistant|>", "")]
    )
    path.write_text(path.read_text().replace(old, new))
    return f"chat template {old} -> {new!r}"


def _special(folder: Path, random: Random) -> str:
    path = folder / "tokenizer_config.json"
    key, value = random.choice([("bos_token", "</s>"), ("eos_token", "<|end|>"), ("bos_token", "<pad>")])
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    return f"{key} {value}"


_TOKENIZERS = (
    *map(_tokenizer, (_letters, _normalizer, _pre_tokenizer, _post_processor, _added, _decoder)),
    *(_chat_template, _special),
)
_MERGING = (_tokenizer(_merges),)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """As the tiny one, but it makes one token of two that often stand together."""
    plain = tiny_tokenizer()
    vocabulary = dict(plain.get_vocab())
    merged = [("a", "t"), ("t", "h"), ("h", "e"), ("i", "s")]
    for index, pair in enumerate(merged):
        # Letters that no text here has make room.
        vocabulary["".join(pair)] = vocabulary.pop("~`^|"[index])
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=merged, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Punctuation()
    made = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = plain.chat_template
    return made


# ---- what changes nothing ----


def _rewritten(folder: Path, random: Random) -> str:
    tensors = list(_tensors(folder).items())
    random.shuffle(tensors)
    _keep(folder, dict(tensors))
    return "weights in another order"


def _sharded(folder: Path, random: Random) -> str:
    tensors = _tensors(folder)
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{random.randint(1, 3)}-of-00003.safetensors" for name in tensors}
    for file in set(places.values()):
        save_file({name: t for name, t in tensors.items() if places[name] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "weights in shards"


def _irrelevant(folder: Path, random: Random) -> str:
    path = folder / "config.json"
    key, value = random.choice([("_name_or_path", "x"), ("use_cache", False), ("transformers_version", "4.0.0")])
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    return f"{key} {value}"


def _nothing(folder: Path, random: Random) -> str:
    return "a copy"


_SAME = (_rewritten, _sharded, _irrelevant, _nothing)

# ---- tries ----


class _Pairs:
    """A model of each family, with a memory, and with copies in which one thing is changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = {family: self._make(family, tiny_tokenizer()) for family in _SETTINGS}
        self.models["merging"] = self._make("merging", merging_tokenizer())
        self.models["adapted"] = self._make("adapted", tiny_tokenizer())

    def _make(self, family: str, tokenizer: PreTrainedTokenizerFast) -> Path:
        folder = self.folder / family
        if family == "adapted":
            torch.manual_seed(0)
            linears = {f"layers.{i}.self_attn.q_proj": (torch.randn(2, 32), torch.randn(32, 2)) for i in range(3)}
            peft.write(folder, linears, decoder="model", base=str(self.folder / "llama"), alpha=4.0)
        else:
            tiny_model(family if family in _SETTINGS else "llama").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        session = load(str(folder), method="full", dtype="float32")
        session.write(CAT)
        session.save(self.folder / f"{family}.safetensors")
        return folder

    def open(self, number: int, edits: dict[str, Any], random: Random) -> tuple[str, Callable[[], object]]:
        """What was changed, and how to open the memory of the one model over the other."""
        family = random.choice(sorted(edits))
        other = self.folder / f"other{number}"
        shutil.copytree(self.models[family], other)
        said = random.choice(edits[family])(other, random)
        state = self.folder / f"{family}.safetensors"
        return f"{family} {said}", lambda: open_state(state, model=str(other), dtype="float32")


def differ(folder: Path) -> Try:
    """Whatever differs, the memory is refused."""
    pairs = _Pairs(folder)
    # Weights, settings and tokenizers in turn.
    settings: dict[str, list[Edit]] = {family: [_setting] for family in _SETTINGS}
    settings |= {"adapted": [_scale], "llama": [_setting, _stops]}
    tokenizers = {"llama": _TOKENIZERS, "merging": _MERGING}
    kinds = ({"llama": _WEIGHTS, "gemma2": _WEIGHTS}, settings, settings, tokenizers)

    def attempt(number: int, random: Random) -> list[str]:
        said, opening = pairs.open(number, kinds[number % len(kinds)], random)
        return [f"{said} -> {problem}" for problem in refused(opening, StateMismatchError, ModelError)]

    return attempt


def change_in_place(folder: Path) -> Try:
    """A model that was opened and whose file was then changed, its size and time as before, is another model."""
    pairs = _Pairs(folder)

    def attempt(number: int, random: Random) -> list[str]:
        said, opening = pairs.open(number, {"llama": (_nothing,)}, random)
        opening()
        file = folder / f"other{number}" / "model.safetensors"
        before = file.stat()
        said = random.choice(_WEIGHTS)(file.parent, random)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        return [f"{said} -> {problem}" for problem in refused(opening, StateMismatchError)]

    return attempt


def agree(folder: Path) -> Try:
    """Where only the files differ and not what they say, the memory opens."""
    pairs = _Pairs(folder)

    def attempt(number: int, random: Random) -> list[str]:
        whole = {family: _SAME for family in pairs.models if family != "adapted"}
        said, opening = pairs.open(number, {**whole, "adapted": (_nothing,)}, random)
        problems = [problem for problem in refused(opening) if problem != "it was accepted"]
        return [f"{said} -> {problem}" for problem in problems]

    return attempt


ATTACKS = (
    Attack("pairs.differ", "models or tokenizers that differ: taken for one", differ, 129),
    Attack(
        "pairs.in_place", "models changed in place, time and size kept: taken for the one before", change_in_place, 30
    ),
    Attack("pairs.agree", "models in other files: taken for another", agree, 30),
)
