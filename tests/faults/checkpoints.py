"""Folders of released checkpoints, and of learned parts, in which something is not as it should be."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from byheart import load
from byheart.errors import ByheartError
from byheart.model.backbone import Backbone
from byheart.protocol.checkpoint import save_pretrained
from byheart.published import ccm, memoryllm
from tests.conftest import save_tiny
from tests.faults.attack import Attack, Try, refused
from tests.samples import ROOT

_GOLDEN = ROOT / "tests" / "golden"
_SECONDS = 5
"""That a refusal may take of the processor: a second, and what a busy machine adds."""

# ---- settings ----

_NO_NUMBER: tuple[Any, ...] = (None, "x", "", [], {}, [8], True, -1, 0, 1.5, float("nan"), float("inf"), 10**11, 10**30)
_NO_SETTING: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_blocks", "num_tokens", "hidden_size", "num_hidden_layers", "r"), (*_NO_NUMBER, 7, 10**5)),
    **dict.fromkeys(
        ("num_attention_heads", "intermediate_size", "vocab_size"), ("x", [], {}, True, -1, 0, 1.5, 3, 10**11)
    ),
    "num_key_value_heads": ("x", [], -1, 0, 3, 10**9),
    "head_dim": ("x", [], -1, 0, 7),
    "max_position_embeddings": (None, "x", [], {}, True, -1, 0, 1.5, float("nan")),
    "rms_norm_eps": ("x", [], {}, float("nan"), float("inf"), -1),
    "rope_theta": ("x", [], {}, None, float("nan"), float("inf"), 0, -1),
    "rope_scaling": (
        5,
        "x",
        [],
        [1],
        {"type": "evil"},
        {"type": 5},
        {"type": "linear"},
        {"type": "linear", "factor": "x"},
    ),
    "hidden_act": ("evil", 5, [], {}, "__import__"),
    "lora_alpha": (None, "x", [], {}, float("nan"), float("inf"), True),
    "target_modules": (None, 5, "x", [], {}, [5], [["q_proj"]]),
    "lora_config": (5, "x", [1], {"r": 4}, {"r": "x", "lora_alpha": 1, "target_modules": []}, True),
}


def _setting(folder: Path, random: Random) -> str:
    path = random.choice([path for path in folder.glob("*config.json") if path.name != "generation_config.json"])
    stored = json.loads(path.read_text())
    holders = [stored, *(value for value in stored.values() if isinstance(value, dict))]
    found = [(holder, key) for holder in holders for key in holder if key in _NO_SETTING]
    holder, key = random.choice(found)
    wrong = [value for value in _NO_SETTING[key] if value != holder[key]]
    holder[key] = random.choice(wrong)
    path.write_text(json.dumps(stored))
    return f"{key} {holder[key]!r:.40}"


def _no_settings(folder: Path, random: Random) -> str:
    path = random.choice(list(folder.glob("*config.json")))
    path.unlink()
    kind = random.choice(
        ["absent", "fifo", "device", "folder", "", "[]", "5", "null", "{}", "[" * 100_000, "9" * 5000, "\ufeff{}", "{"]
    )
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to(random.choice(["/dev/zero", "/dev/urandom"]))
    elif kind == "folder":
        path.mkdir()
    elif kind != "absent":
        path.write_text(kind)
    return f"{path.name} {kind[:20]}"


# ---- tensors ----


def _weights(folder: Path) -> Path:
    return next(folder.glob("*model.safetensors"))


def _used(tensors: dict[str, Tensor]) -> list[str]:
    return sorted(name for name, tensor in tensors.items() if tensor.numel() > 1 and "inv_freq" not in name)


def _not_finite(tensor: Tensor, random: Random) -> Tensor:
    spoilt = tensor.clone()
    spoilt.view(-1)[random.randrange(tensor.numel())] = random.choice([float("nan"), float("inf"), float("-inf")])
    return spoilt


def _cast(tensor: Tensor, random: Random) -> Tensor:
    return tensor.to(
        random.choice([torch.int8, torch.bool, torch.uint8, torch.int64, torch.complex64, torch.float8_e4m3fn])
    )


def _reshaped(tensor: Tensor, random: Random) -> Tensor:
    return random.choice([tensor[None], tensor.flatten()[:-1], tensor.flatten()[None, :1], tensor.sum(), tensor[:0]])


def _tensor(folder: Path, random: Random) -> str:
    path = _weights(folder)
    tensors = load_file(path)
    name = random.choice(_used(tensors))
    change = random.choice([_not_finite, _not_finite, _cast, _reshaped])
    tensors[name] = change(tensors[name], random).contiguous()
    save_file(tensors, path, {"format": "pt"})
    return f"{name} {change.__name__[1:]} {tensors[name].dtype}"


def _names(folder: Path, random: Random) -> str:
    path = _weights(folder)
    tensors = load_file(path)
    name = random.choice(_used(tensors))
    kind = random.choice(["absent", "renamed", "more"])
    tensor = tensors[name] if kind == "more" else tensors.pop(name)
    if kind != "absent":
        tensors[f"{name}{random.choice(['x', '.weight', '/../x'])}"] = tensor.clone()
    save_file(tensors, path, {"format": "pt"})
    return f"{name} {kind}"


def _bytes(folder: Path, random: Random) -> str:
    path = _weights(folder)
    raw, kind = path.read_bytes(), random.choice(["half", "empty", "length", "no header", "random"])
    changed = {
        "half": raw[: len(raw) // 2],
        "empty": b"",
        "length": b"\xff" * 8 + raw[8:],
        "random": random.randbytes(500),
    }
    path.write_bytes(changed.get(kind, b"\x02" + bytes(7) + b"[]"))
    return f"weights {kind}"


# ---- files ----


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def _bin(folder: Path, random: Random) -> str:
    """Weights as a `.bin`: of the right tensors but one, or of something else."""
    path = _weights(folder)
    tensors: dict[Any, Any] = dict(load_file(path))
    path.unlink()
    target = folder / "pytorch_model.bin"
    name = random.choice(_used(tensors))
    odd: dict[str, Callable[[], Any]] = {
        "sparse": lambda: {**tensors, name: tensors[name].to_sparse()},
        "meta": lambda: {**tensors, name: tensors[name].to("meta")},
        "quantised": lambda: {**tensors, name: torch.quantize_per_tensor(tensors[name].float(), 0.1, 0, torch.qint8)},
        "number as a key": lambda: {**tensors, 5: tensors[name]},
        "nested": lambda: {**tensors, name: {"a": tensors[name]}},
        "list": lambda: list(tensors.values()),
        "text": lambda: {**tensors, name: "text"},
        "tensor": lambda: tensors[name],
        "code": lambda: {**tensors, name: _Evil(folder.parent / f"{folder.name}-ran")},
        "number": lambda: 5,
    }
    kind = random.choice([*odd, "plain", "pickle", "zip", "cut"])
    if kind in odd:
        torch.save(odd[kind](), target, _use_new_zipfile_serialization=random.random() < 0.7 or kind == "meta")
    elif kind == "plain":
        target.write_bytes(
            random.choice([b"hello world\n" * 9, b"0123456789", b"(lp0\n.", b"", b"\x80\x02}q\x00.", b"garbage\n."])
        )
    elif kind == "pickle":
        target.write_bytes(
            pickle.dumps(random.choice([_Evil(folder.parent / f"{folder.name}-ran"), {"a": 1}, [1] * 99]))
        )
    elif kind == "zip":
        with zipfile.ZipFile(target, "w") as file:
            file.writestr("archive/data.pkl", random.choice([b"", b"x", pickle.dumps({"a": 1}, protocol=2)]))
    else:
        torch.save(tensors, target)
        target.write_bytes(target.read_bytes()[: random.choice([10, 1000, -1000, -22])])
    return f".bin {kind}"


def _index(folder: Path, random: Random) -> str:
    """Weights in shards, of which one lies elsewhere or is no file."""
    path = _weights(folder)
    tensors = load_file(path)
    outside = folder.parent / f"{folder.name}-outside.safetensors"
    path.rename(outside)
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "link.safetensors").symlink_to(outside)
    index = f"{path.name}.index.json"
    shards = (
        f"../{outside.name}",
        str(outside),
        "/dev/zero",
        "/dev/stdin",
        "pipe.safetensors",
        "link.safetensors",
        ".",
        "",
    )
    shard = random.choice(
        (*shards, "none.safetensors", index, "/dev/zero.safetensors", 5, None, [], {}, "a\0b", "x" * 5000)
    )
    weight_map = random.choice([dict.fromkeys(tensors, shard)] * 5 + [[], 5, "x", None, {}, {"x": shard}])
    text = random.choice([json.dumps({"weight_map": weight_map})] * 9 + ["[]", "{}", "[" * 100_000, ""])
    (folder / index).write_text(text)
    return f"index {str(weight_map)[-60:]}"


def _files(folder: Path, random: Random) -> str:
    path = _weights(folder)
    path.unlink()
    kind = random.choice(["absent", "fifo", "zero", "folder", "dangling"])
    if kind == "fifo":
        os.mkfifo(path)
    elif kind in ("zero", "dangling"):
        path.symlink_to("/dev/zero" if kind == "zero" else "no-such-file")
    elif kind == "folder":
        path.mkdir()
    return f"{path.name} {kind}"


_CHANGES = (
    _setting,
    _setting,
    _setting,
    _setting,
    _no_settings,
    _tensor,
    _tensor,
    _tensor,
    _names,
    _bytes,
    _bin,
    _bin,
    _index,
    _files,
)

# ---- tries ----


def _memoryllm(folder: Path) -> object:
    return memoryllm(folder, dtype="float32")


def _ccm(kind: str) -> Callable[[Path], object]:
    return lambda folder: ccm(folder, base=_base(folder), merge=kind, dtype="float32")


def _base(folder: Path) -> Path:
    return folder.parent / f"base-of-{folder.name}"


def _sources(folder: Path) -> dict[Path, Callable[[Path], object]]:
    """Released folders and their readers; their weights are one file of safetensors, so that they can be changed."""
    openers: dict[Path, Callable[[Path], object]] = {}
    for golden in sorted([*_GOLDEN.glob("memoryllm_*"), *_GOLDEN.glob("ccm_*")]):
        adapter, source = golden / "adapter", folder / golden.name
        shutil.copytree(adapter if adapter.exists() else golden, source, ignore=shutil.ignore_patterns("expected*"))
        if adapter.exists():
            save_file(torch.load(source / "pytorch_model.bin"), source / "model.safetensors", {"format": "pt"})
            (source / "pytorch_model.bin").unlink()
        kind = golden.name.removeprefix("ccm_").removesuffix("_tiny")
        openers[source] = _ccm(kind) if adapter.exists() else _memoryllm
    return openers


def _copy(source: Path, target: Path) -> Path:
    """A folder to be changed; an adapter has its base beside it."""
    base = _GOLDEN / source.name / "base"
    if base.exists():
        shutil.copytree(base, _base(target))
    return Path(shutil.copytree(source, target))


def malformed(folder: Path) -> Try:
    """A folder that is not as it was released is refused in a few seconds, with the file and what is wrong."""
    openers = _sources(folder)
    for index, (source, opener) in enumerate(openers.items()):
        opener(_copy(source, folder / f"good{index}"))

    def attempt(number: int, random: Random) -> list[str]:
        source, opener = random.choice(list(openers.items()))
        target = _copy(source, folder / f"{number}")
        said = random.choice(_CHANGES)(target, random)
        return _problems(f"{source.name} {said}", target, lambda: opener(target))

    return attempt


def _problems(said: str, target: Path, opening: Callable[[], object]) -> list[str]:
    start = time.process_time()
    problems = refused(opening, ByheartError)
    seconds = time.process_time() - start
    problems += [f"it took {seconds:.1f} s"] if seconds > _SECONDS else []
    problems += ["the code of the file ran"] if (target.parent / f"{target.name}-ran").exists() else []
    return [f"{said} -> {problem}" for problem in problems]


def learned(folder: Path) -> Try:
    """The same of a folder of learned parts in byheart's own format."""
    model = save_tiny(folder / "model")
    backbone = Backbone.open(str(model), dtype="float32")
    encoder = load(backbone, method="full").encoder
    source = folder / "good"
    save_pretrained(load(backbone, method="compressed-kv", encoder=encoder, tokens=2, rank=2).method, source)
    changes = (_card, _card, _tensor, _names, _bytes, _files)

    def opening(target: Path) -> object:
        return load(backbone, method=str(target), encoder=encoder)

    opening(source)

    def attempt(number: int, random: Random) -> list[str]:
        target = folder / f"learned{number}"
        shutil.copytree(source, target)
        (target / "method.safetensors").rename(target / "model.safetensors")
        said = random.choice(changes)(target, random)
        if os.path.lexists(target / "model.safetensors"):
            (target / "model.safetensors").rename(target / "method.safetensors")
        return _problems(said, target, lambda: opening(target))

    return attempt


def _card(folder: Path, random: Random) -> str:
    path = folder / "method.json"
    stored = json.loads(path.read_text())
    odd = (None, 5, [], "x", True, 1.5, [["a", 1]], "../x")
    options = (
        None,
        5,
        [],
        "x",
        {"backbone": 1},
        {"self": 1},
        {"model": "x"},
        {"rank": 10**12},
        {"tokens": "x"},
        {"tokens": -1},
    )
    key = random.choice(["method", "options", "options", "backbone"])
    value = random.choice(options if key == "options" else (*odd, {}))
    text = json.dumps({**stored, key: value})
    whole = random.choice([text] * 8 + ["", "[]", "5", "[" * 100_000, "9" * 5000, text[:-3]])
    path.write_text(whole)
    return f"method.json {key} {value!r}" if whole == text else f"method.json {whole[:20]}"


ATTACKS = (
    Attack(
        "checkpoints.published",
        "malformed released checkpoints: traceback, hang, opened without a word",
        malformed,
        442,
    ),
    Attack("checkpoints.learned", "malformed learned parts: traceback, hang, opened without a word", learned, 150),
)
