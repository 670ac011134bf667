"""Released checkpoints as a stranger may have made them: each is refused in one line, soon, and nothing hangs.

Settings of every type and bound, indices that lead elsewhere, tensors of every kind, broken files; what is random has a
seed. Each case is a copy of a golden folder with one thing wrong.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from byheart.errors import CheckpointError
from byheart.model.backbone import Backbone
from byheart.published import ccm, memoryllm
from tests.samples import ROOT

GOLDEN = ROOT / "tests" / "golden"
POOL, ADAPTER = GOLDEN / "memoryllm_8b_tiny", GOLDEN / "ccm_concat_recur_tiny"
ROWS = "base_model.model.model.embed_tokens.comp_embeddings.weight"
DOWN = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SEED, TRIES = 11, 12

Spoil = Callable[[Path], object]
Case = tuple[str, Spoil]

pytestmark = [
    pytest.mark.skipif(not (POOL.exists() and ADAPTER.exists()), reason="the golden folders are not there"),
    # PyTorch says so of the quantised, nested and sparse tensors that these tests make.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """A reader that waits for ever fails its own test."""

    def stop(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def cases(table: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("spoil", [spoil for _, spoil in table], ids=[name for name, _ in table])


def refused(read: Callable[[Path], object], folder: Path, file: str = "") -> str:
    """The one line that refuses ``folder``, and names ``file`` in it."""
    seconds = []
    # The first time, modules may be imported. Of this thread alone, so that a busy machine does not count.
    for _ in range(2):
        start = time.thread_time()
        with pytest.raises(CheckpointError) as caught:
            read(folder)
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 1
    said = str(caught.value)
    assert str(folder / file) in said
    assert said.isprintable()
    assert len(said) < 4000
    return said


# ---- what is wrong ----


def setting(file: str, path: str, value: Any) -> Case:
    """A setting of another value; its path has a dot for each level."""

    def spoil(folder: Path) -> None:
        stored = json.loads((folder / file).read_text())
        *parents, last = path.split(".")
        inner = stored
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
        (folder / file).write_text(json.dumps(stored))

    return f"{path}={str(value)[:20]}", spoil


def text(file: str, content: str | bytes) -> Case:
    raw = content if isinstance(content, bytes) else content.encode()
    return f"{file}={raw[:20]!r}", lambda folder: (folder / file).write_bytes(raw)


def weights(folder: Path) -> Path:
    return next(folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).exists())


def tensor(name: str, kind: str, change: Callable[[Tensor], object]) -> Case:
    """A ``.bin`` in which one tensor is something else."""

    def spoil(folder: Path) -> None:
        stored: dict[Any, Any] = load_file(folder / "model.safetensors")
        stored[name] = change(stored[name])
        as_bin(folder, stored)

    return f"{name.split('.')[-2] if '.' in name else name} {kind}", spoil


def as_bin(folder: Path, stored: object, **options: Any) -> None:
    (folder / "model.safetensors").unlink()
    # To name what it writes, pickle asks every module for it, and older transformers then imports all of its own.
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        torch.save(stored, folder / "pytorch_model.bin", **options)


def indexed(target: Any) -> Spoil:
    """An index that says that every tensor is in ``target``."""

    def spoil(folder: Path) -> None:
        index = dict.fromkeys(load_file(folder / "model.safetensors"), target)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

    return spoil


COUNTS = ("x", 0, -1, 1.5, True, [], {}, 10**11, 10**400, float("inf"))
FLAGS = ("true", 0, 1, [], {})
NUMBERS = ("x", 0, -1.0, True, [], 1e13, float("nan"), float("inf"))
TYPES: dict[str, Sequence[Any]] = {
    **dict.fromkeys(("num_blocks", "num_tokens", "num_hidden_layers", "max_position_embeddings"), (*COUNTS, None)),
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"), (*COUNTS, None)),
    **dict.fromkeys(("num_key_value_heads", "head_dim"), COUNTS),
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings"), FLAGS),
    **dict.fromkeys(("interpolate_position_ids", "drop_memory_per_layer", "add_decoder_lora"), FLAGS),
    **dict.fromkeys(("rms_norm_eps", "rope_theta"), NUMBERS),
    "initializer_range": ["x", -1.0, True, 2.0, None],
    "hidden_act": [1, None, "", "a b", "x" * 100],
    "pad_token_id": ["x", -2, 101, 10**11, [1]],
    "eos_token_id": ["x", -1, [1, "x"], 1.5],
    "rope_scaling": [
        5,
        "x",
        [],
        {"type": "yarn"},
        {"rope_type": "linear"},
        {"type": 5},
        {"type": "llama3", "factor": 2.0},
    ],
    "rope_scaling.factor": NUMBERS,
    "lora_config": [5, "x", [1], {"r": 4}, {"r": 4, "lora_alpha": 1.0}],
    "lora_config.r": [*COUNTS, None],
    "lora_config.lora_alpha": [*NUMBERS, None],
    "lora_config.target_modules": [None, "q_proj", [], [1], ["input_layernorm"], ["embed_tokens"], {"q_proj": 1}],
    "lora_config.use_rslora": [True],
    "lora_config.rank_pattern": [{"q_proj": 8}, 5],
}
# Right by their types, and yet of another model than the tensors; or of none.
MISFITS: dict[str, list[Any]] = {
    "num_blocks": [1, 6, 10**8],
    "num_tokens": [7, 10**8],
    "num_hidden_layers": [2, 4, 1000, 10**5],
    "hidden_size": [2, 7, 10**6],
    "num_attention_heads": [3, 8],
    "num_key_value_heads": [3, 1],
    "head_dim": [3, 2, 10**6],
    "vocab_size": [50, 100, 10**7],
    "max_position_embeddings": [1 << 25],
    "bos_token_id": [101],
    "eos_token_id": [101, [2, 10**6]],
    "lora_config.r": [1, 5, 10**7],
    "lora_config.target_modules": [["q_proj"], ["o_proj"]],
    "add_decoder_lora": [False],
}
TEXTS = [
    *("", "[]", "5", "null", '"x"', "{", "{}", '{"num_blocks": 1}', "not json", "[" * 100_000, '{"a": ' * 100_000),
    *('{"num_blocks": ' + "9" * 5000 + "}", '{"num_blocks": NaN}', '{"rope_theta": 1e999}', b"\xff\xfe{", b"\0" * 100),
]
CONFIGS = [
    *(setting("config.json", key, value) for table in (TYPES, MISFITS) for key in table for value in table[key]),
    *(text("config.json", content) for content in TEXTS),
]


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def linked(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def in_place_of(name: str, put: Callable[[Path], object]) -> Case:
    """Something else under the name of a file, or of a shard that an index names."""

    def spoil(folder: Path) -> None:
        if name == "shard.safetensors":
            indexed(name)(folder)
        (folder / name).unlink(missing_ok=True)
        put(folder / name)

    return f"{name} {getattr(put, 'func', put).__name__}", spoil


def devices(*names: str) -> list[Case]:
    outside = POOL / "model.safetensors"
    puts = [fifo, Path.mkdir, partial(linked, target=outside), partial(linked, target=Path("/dev/zero"))]
    return [in_place_of(name, put) for name in names for put in puts]


INDICES: list[Case] = [
    *(
        (f"index to {target!r}", indexed(target))
        for target in [
            *("../x", "../model.safetensors", str(POOL / "model.safetensors"), "/dev/zero", "a/b.bin", "..", "", "."),
            *("model.safetensors.index.json", "config.json", "missing.safetensors", "a\nb.bin", "\0", "\ud800.bin"),
            *(5, None, ["model.safetensors"], {"a": "b"}, True),
        ]
    ),
    *(
        text("model.safetensors.index.json", content)
        for content in [*TEXTS[:8], '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": "x"}']
    ),
    *devices("model.safetensors.index.json", "model.safetensors", "shard.safetensors", "config.json"),
]


def spread(value: float) -> Callable[[Tensor], Tensor]:
    """A tensor whose last number is ``value``."""

    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


def quantised(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


KINDS: dict[str, Callable[[Tensor], object]] = {
    "NaN": spread(float("nan")),
    "infinite": spread(float("inf")),
    "too large": lambda tensor: spread(1e300)(tensor.double()),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "bool": lambda tensor: tensor.bool(),
    "int8": lambda tensor: tensor.to(torch.int8),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "quantised": quantised,
    "sparse": lambda tensor: tensor.to_sparse(),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor]),
    "meta": lambda tensor: tensor.to("meta"),
    "0-dim": lambda tensor: tensor.sum(),
    "empty": lambda tensor: tensor[..., :0],
    "one dimension more": lambda tensor: tensor[None],
    "expanded": lambda tensor: tensor.view(-1)[:1].expand(tensor.shape),
    "vast": lambda tensor: torch.zeros(1).expand(10**15),
    "a list": lambda tensor: tensor.tolist(),
    "a dict": lambda tensor: {"weight": tensor},
    "a number": lambda tensor: 5,
    "None": lambda tensor: None,
    "a path": lambda tensor: Path("/"),
    "a module": lambda tensor: nn.Linear(2, 2),
}
POOL_TENSORS = [
    tensor(name, kind, change)
    for name in (
        "memory",
        "new_memory_positional_emb",
        "model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "model.norm.weight",
    )
    for kind, change in KINDS.items()
]
FILLED = [
    tensor("initialized", kind, change)
    for kind, change in {
        "two": lambda tensor: tensor + 2,
        "NaN": lambda tensor: torch.tensor(float("nan")),
        "long": lambda tensor: tensor[None],
        "absent": lambda tensor: None,
    }.items()
]


def cut(share: float) -> Spoil:
    """The weights without their end."""

    def spoil(folder: Path) -> None:
        os.truncate(weights(folder), int(weights(folder).stat().st_size * share))

    return spoil


def stirred(seed: int) -> Spoil:
    """The weights' first bytes, in which a file says what it holds, at random."""

    def spoil(folder: Path) -> None:
        with weights(folder).open("r+b") as file:
            file.write(random.Random(seed).randbytes(16))

    return spoil


def then(first: Spoil, second: Spoil) -> Spoil:
    return lambda folder: (first(folder), second(folder))


def rewritten(**options: Any) -> Spoil:
    """The same tensors in a ``.bin``."""
    return lambda folder: as_bin(folder, load_file(folder / "model.safetensors"), **options)


LAYOUTS: dict[str, Spoil] = {
    "safetensors": lambda folder: None,
    "zip": rewritten(),
    "pickle": rewritten(_use_new_zipfile_serialization=False),
}
SHARES = sorted(random.Random(SEED).uniform(0, 0.999) for _ in range(TRIES))
BROKEN: list[Case] = [
    *((f"{name} cut at {share:.2f}", then(layout, cut(share))) for name, layout in LAYOUTS.items() for share in SHARES),
    *(
        (f"{name} stirred {n}", then(LAYOUTS[name], stirred(n)))
        for name in ("safetensors", "pickle")
        for n in range(TRIES)
    ),
    *(
        (f"bin of {content[:20]!r}", then(rewritten(), text("pytorch_model.bin", content)[1]))
        for content in (
            b"",
            b"plain text",
            b"A" * 1000,
            b"c__builtin__\neval\n",
            b"PK\x03\x04",
            b"\x80\x02}q\0.",
            b"\x80\x04N.",
        )
    ),
]


def others(stored: dict[Any, Any]) -> dict[str, object]:
    """What a ``.bin`` may hold in place of named tensors."""
    own = next(iter(stored.values()))
    return {
        "integer keys": dict(enumerate(stored.values())),
        "a list": list(stored.values()),
        "nested": {"state_dict": stored},
        "nothing": {},
        "one tensor": own,
        "a name that breaks the line": {**stored, "a\nb\x1b]0;c\x07": own},
        "a tensor twice as long": {**stored, "more": torch.zeros(10)},
    }


# ---- MemoryLLM ----


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    (tmp_path / "pool").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(POOL / name, tmp_path / "pool" / name)
    return tmp_path / "pool"


read_pool = partial(memoryllm, dtype="float32", device="cpu")


def test_the_copy_is_one_that_opens(pool: Path) -> None:
    assert read_pool(pool).initial is not None


def test_a_token_that_says_that_there_is_no_padding_is_none(pool: Path) -> None:
    setting("config.json", "pad_token_id", -1)[1](pool)
    assert read_pool(pool).backbone.config.pad_token_id is None


@cases(CONFIGS)
def test_settings_of_a_pool_that_cannot_be_are_refused(pool: Path, spoil: Spoil) -> None:
    spoil(pool)
    refused(read_pool, pool)


@cases(INDICES)
def test_an_index_of_a_pool_that_leads_elsewhere_is_refused(pool: Path, spoil: Spoil) -> None:
    spoil(pool)
    refused(read_pool, pool)


@cases([*POOL_TENSORS, *FILLED])
def test_tensors_of_a_pool_that_cannot_be_used_are_refused(pool: Path, spoil: Spoil) -> None:
    spoil(pool)
    refused(read_pool, pool)


@cases(BROKEN)
def test_broken_files_of_a_pool_are_refused(pool: Path, spoil: Spoil) -> None:
    spoil(pool)
    assert weights(pool).name in refused(read_pool, pool)


@pytest.mark.parametrize("kind", others({0: torch.zeros(1)}))
def test_a_bin_of_a_pool_that_holds_something_else_is_refused(pool: Path, kind: str) -> None:
    as_bin(pool, others(load_file(pool / "model.safetensors"))[kind])
    refused(read_pool, pool)


def test_a_wrong_setting_is_named_with_its_value(pool: Path) -> None:
    setting("config.json", "lora_config.r", "x")[1](pool)
    assert "lora_config: r: Input should be a valid integer; it is 'x'" in refused(read_pool, pool, "config.json")


def test_settings_of_more_bytes_than_the_files_have_are_refused_before_a_model_is_made(pool: Path) -> None:
    setting("config.json", "vocab_size", 10**7)[1](pool)
    assert "they speak of 2,560,236,544 bytes of tensors or more, and its files have 625,849" in refused(
        read_pool, pool
    )


def test_a_tensor_that_is_not_finite_is_named(pool: Path) -> None:
    tensor("memory", "NaN", spread(float("nan")))[1](pool)
    assert refused(read_pool, pool).endswith("memory holds NaN or infinite numbers in torch.float32.")


def test_numbers_that_the_models_type_cannot_hold_are_refused(pool: Path) -> None:
    tensor("model.norm.weight", "large", spread(1e6))[1](pool)
    assert "infinite numbers in torch.float16" in refused(partial(memoryllm, dtype="float16", device="cpu"), pool)


def test_a_tensor_that_two_files_hold_is_refused(pool: Path) -> None:
    stored = load_file(pool / "model.safetensors")
    save_file({"memory": stored["memory"]}, pool / "more.safetensors")
    index = {**dict.fromkeys(stored, "model.safetensors"), "memory": "more.safetensors"}
    (pool / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert "another file holds too: memory" in refused(read_pool, pool)


def test_the_links_of_the_hubs_cache_are_followed(pool: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    pool.rename(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert read_pool(snapshot).initial is not None


# ---- CCM ----


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = shutil.copytree(ADAPTER / "adapter", tmp_path / "adapter")
    if not (folder / "model.safetensors").exists():
        save_file(torch.load(folder / "pytorch_model.bin", weights_only=True), folder / "model.safetensors")
        (folder / "pytorch_model.bin").unlink()
    return folder


@cache
def base() -> Backbone:
    return Backbone.open(str(ADAPTER / "base"), dtype="float32", device="cpu")


def read_adapter(folder: Path) -> object:
    return ccm(folder, base=base(), merge="concat_recur", sink=False)


CARDS = [
    setting("adapter_config.json", key, value)
    for key, values in {
        "r": [*COUNTS, None, 1, 5, 10**7],
        "lora_alpha": [*NUMBERS, None],
        "target_modules": [None, "q_proj", [], [1], ["x"], {"q_proj": 1}],
        "peft_type": ["LOHA", 5],
        "bias": ["all", True],
        "fan_in_fan_out": [True, "x"],
        "use_rslora": [True],
        "use_dora": [True],
        "rank_pattern": [{"q_proj": 2}, "x"],
        "alpha_pattern": [{"q_proj": 2.0}, []],
    }.items()
    for value in values
]
ADAPTER_TENSORS = [tensor(name, kind, change) for name in (ROWS, DOWN) for kind, change in KINDS.items()]


def test_the_copied_adapter_is_one_that_opens(adapter: Path) -> None:
    assert read_adapter(adapter)


@cases([*CARDS, *(text("adapter_config.json", content) for content in TEXTS), *devices("adapter_config.json")])
def test_settings_of_an_adapter_that_cannot_be_are_refused(adapter: Path, spoil: Spoil) -> None:
    base()
    spoil(adapter)
    refused(read_adapter, adapter)


@cases(ADAPTER_TENSORS)
def test_tensors_of_an_adapter_that_cannot_be_used_are_refused(adapter: Path, spoil: Spoil) -> None:
    base()
    spoil(adapter)
    refused(read_adapter, adapter)


@cases(BROKEN)
def test_broken_files_of_an_adapter_are_refused(adapter: Path, spoil: Spoil) -> None:
    base()
    spoil(adapter)
    assert weights(adapter).name in refused(read_adapter, adapter)


@pytest.mark.parametrize("kind", others({0: torch.zeros(1)}))
def test_a_bin_of_an_adapter_that_holds_something_else_is_refused(adapter: Path, kind: str) -> None:
    as_bin(adapter, others(load_file(adapter / "model.safetensors"))[kind])
    refused(read_adapter, adapter)


@cases(
    [
        *(
            setting("adapter_config.json", "target_modules", value)
            for value in (None, "q_proj", [], ["x"], [5], ["q_proj"])
        ),
        tensor(DOWN, "NaN", spread(float("nan"))),
        tensor(DOWN, "too large", spread(3e38)),
        tensor(DOWN, "int8", KINDS["int8"]),
    ]
)
def test_a_base_lora_that_cannot_be_merged_is_refused(adapter: Path, spoil: Spoil, tmp_path: Path) -> None:
    first = shutil.copytree(adapter, tmp_path / "first")
    stored = load_file(first / "model.safetensors")
    save_file({name: part for name, part in stored.items() if name != ROWS}, first / "model.safetensors")
    spoil(first)
    refused(lambda folder: ccm(adapter, base=ADAPTER / "base", merge="concat", base_lora=folder), first)
