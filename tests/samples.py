"""One small example of everything that tests are about: backbones, methods with quick options, texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.generation.decoding import Decoding
from byheart.generation.generate import generate
from byheart.methods import BUILT_IN, build
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol import key_moments
from byheart.protocol.codec import shelf
from byheart.protocol.codec.calibration import Example, calibrate
from byheart.protocol.codec.codec import Codec
from byheart.protocol.method import Method
from byheart.protocol.state import State
from byheart.testing import FAMILIES, VOCABULARY, tiny_backbone

ROOT = Path(__file__).resolve().parent.parent

# Options that make a method quick, and strong enough that a tiny model answers differently. A method without an entry
# is tested with its defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "latent-pool": {"slots": 8, "blocks": 3, "longest": 32, "shortest": 4},
    "long-term-pool": {
        **{"slots": 4, "blocks": 2, "recalled": 2, "merge_every": 2, "lives": 2.0, "width": 6},
        **{"longest": 16, "shortest": 4},
    },
    "compressed-kv": {"tokens": 2, "segment_tokens": 16, "rank": 2},
    "last-ffn": {"steps": 2, "learning_rate": 1e-2},
    "ffn-lora": {"steps": 2, "learning_rate": 1e-1, "rank": 2, "chunk_tokens": 16},
    "ffn-edit": {"steps": 2, "learning_rate": 1e-2, "chunk_tokens": 16},
    # Every family has layers of these names.
    "adapter": {"linears": ["o_proj", "down_proj"], "rank": 2},
    "rome": {"layers": [1], "steps": 3, "clamp": 100.0, "contexts": 2, "chunk_tokens": 16},
    "memit": {"layers": [0, 1], "moments_weight": 1.0, "steps": 3, "clamp": 100.0, "contexts": 2, "chunk_tokens": 16},
    "ike": {"chunk_tokens": 16},
    "full": {"chunk_tokens": 16},
    "compact": {"times": 2, "chunk_tokens": 16},
    "window": {"sinks": 2, "recent": 14, "chunk_tokens": 8},
    "every-kth": {"every": 3, "chunk_tokens": 16},
    "mean-pooled": {"every": 3, "chunk_tokens": 16},
    "key-norm": {"slots": 16, "sinks": 2, "recent": 4, "chunk_tokens": 12},
    "attention-score": {"slots": 16, "observed": 4, "chunk_tokens": 12},
    "repeat-score": {"share": 0.4, "chunk_tokens": 16, "repeat_tokens": 24, "repeat": [5, 6], "repeat_from": [7]},
    "retrieval": {"tokens": 24, "segment_tokens": 4, "chunk_tokens": 16},
    "cartridge": {"slots": 8, "steps": 2, "learning_rate": 1e-1, "chunk_tokens": 16},
}
# Methods that have the option ``bits``.
CODED = [
    *("full", "window", "every-kth", "mean-pooled", "key-norm", "attention-score", "cartridge", "latent-pool"),
    *("compressed-kv", "last-ffn"),
]
# More of the same: other options of a method, named by what differs.
VARIANTS: dict[str, dict[str, Any]] = {
    "latent-pool shared": {"forget": "shared", "keep_hidden": True},
    "latent-pool lora": {"rank": 2},
    "latent-pool input": {"feed": "input"},
    "latent-pool kept": {"feed": "input", "rank": 2, "adapt": "kept"},
    "long-term-pool lora": {"rank": 2, "order": "dropped"},
    "long-term-pool kept": {"feed": "input", "rank": 2, "adapt": "kept", "most": 12},
    "compressed-kv mean": {"merge": "mean"},
    "compressed-kv first": {"first_slot": True, "linears": "all"},
    "compressed-kv mean first sink": {"merge": "mean", "first_slot": True, "sink": True},
    "compressed-kv everywhere": {"conditional": False},
    "compressed-kv alone sink": {"recurrent": False, "sink": True},
    "compressed-kv mean alone sink": {"merge": "mean", "recurrent": False, "sink": True},
    "compressed-kv stream": {"slots": 24, "segment_tokens": 8, "compressed_slots": 4, "sink": True},
    "compressed-kv stream mean first": {"slots": 24, "segment_tokens": 8, "merge": "mean", "first_slot": True},
    "compressed-kv stream everywhere": {
        **{"slots": 24, "segment_tokens": 8, "compressed_slots": 4, "conditional": False}
    },
    "compressed-kv control": {"keep_text": True},
    "last-ffn bare": {"keep_text": False},
    "last-ffn two": {"layers": 2, "header": [5, 6], "footer": [7]},
    "ffn-lora values": {"role": "values", "layers": [0, 2]},
    "ffn-edit up": {"role": "up", "layers": [0, 2], "learned_tokens": 8, "bound": 0.015},
    "adapter gate": {"preset": "qv+gate", "linears": []},
    "every-kth sinkless": {"sinks": 0},
    "mean-pooled sinkless": {"sinks": 0},
    "cartridge taught": {"kl": 0.5, "seed": 3},
    **{f"{name} {bits} bits": {"bits": bits} for name in CODED for bits in (8, 4)},
}
METHODS = list(BUILT_IN)
# For tests that ask many questions: one method of each kind, and the others where slow tests run.
_OF_EACH_KIND = ("full", "compact", "latent-pool", "compressed-kv", "ffn-lora", "cartridge", "retrieval", "rome")
KINDS = [each if each in _OF_EACH_KIND else pytest.param(each, marks=pytest.mark.slow) for each in METHODS]
ALL_FAMILIES = list(FAMILIES)


@cache
def backbone(family: str = "llama", dtype: torch.dtype = torch.float32) -> Backbone:
    """A tiny backbone, shared by all tests: nothing may change it."""
    return tiny_backbone(family, dtype=dtype)


def fresh(case: str, own: Backbone, **options: Any) -> Method:
    """A method by its name or a variant's, with quick options, its learned parts made visible."""
    name = case.split()[0]
    if name == "compact":
        codec_of(own)
    if name in ("rome", "memit"):
        moments_of(own)
    made = build(name, own, **{**OPTIONS.get(name, {}), **VARIANTS.get(case, {}), **options})
    stir(made)
    return made


def codec_of(own: Backbone) -> Codec:
    """The codec of a tiny model, made for this process where there is none."""
    if shelf.find(own) is None:
        rows = tokens(60, seed=21, batch=40)
        shelf.hold(calibrate(own, [Example(row[:0], row[:50], row[50:], 0) for row in rows]))
    return shelf.require(own)


def moments_of(own: Backbone) -> Path:
    """The moments of what a tiny model's feed-forward values are given, kept where there are none yet."""
    roles = [own.feed_forward_roles(index).items() for index in range(len(own.layers))]
    paths = [path for each in roles for path, role in each if role == "values"]
    missing = [path for path in paths if key_moments.find(own, path) is None]
    return key_moments.keep(own, key_moments.measure(own, missing, list(tokens(60, seed=22, batch=8))))


@cache
def method(case: str, family: str = "llama") -> Method:
    """A method that all tests share."""
    return fresh(case, backbone(family)).eval()


def stir(made: Method, *, size: float = 0.1, seed: int = 7) -> None:
    """Move every learned parameter off its start: zeros would hide that one is forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def tokens(length: int, *, seed: int = 0, batch: int = 1) -> Tensor:
    """A random text (B, T) without special tokens."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def weights_hash(own: Backbone) -> str:
    """A hash of every weight and buffer of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(own.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hooks(own: Backbone) -> list[str]:
    """Names of the modules that carry a hook."""
    return [
        name or "the model"
        for name, module in own.model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    ]


def written(made: Method, *texts: Tensor, start: State | None = None) -> State:
    """The state after ``texts``, without gradients."""
    state = made.init() if start is None else start
    with torch.no_grad():
        for text in texts:
            state = made.write(state, text)
    return state


def logits(own: Backbone, reading: Reading, prompt: Tensor) -> Tensor:
    """Logits (B, T, V) of a prompt read after one reading."""
    with torch.no_grad(), own.reading([reading]) as cache:
        return own.logits(own.hidden(prompt, cache=cache))


def greedy(own: Backbone, readings: Sequence[Reading], prompts: Sequence[Tensor], *, steps: int = 6) -> list[list[int]]:
    """The greedy tokens of each row, by byheart's own loop."""
    rows = zip(*generate(own, prompts, readings, decoding=Decoding(max_tokens=steps)), strict=True)
    return [[token for token in row if token is not None] for row in rows]


def same(ours: State, theirs: State, *, within: float = 0.0) -> None:
    """Assert that two states are equal, bit by bit unless ``within`` allows rounding."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        if within and tensor.dtype == torch.uint8:
            # Rounding may move a number over the border between two codes.
            unequal = (tensor != theirs[name]).float().mean().item()
            assert unequal < 0.01, f"in {name}: {unequal:.1%} of the codes are others"
            continue
        tolerance = within if tensor.is_floating_point() else 0.0
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=f"in {name}: {{}}".format)
