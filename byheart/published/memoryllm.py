"""MemoryLLM's released checkpoints (Wang et al. 2024, arXiv 2402.04624): memoryllm-7b, memoryllm-8b, memoryllm-8b-chat.

A folder holds a Llama, its trained pool and what goes with it, under these names (L layers, N = blocks x slots, D):

    memory                     (L, N, D)   the pool, oldest slot first; noise where ``initialized`` is 0
    bos_embedding              (L, 1, D)   the slot that stands first
    new_memory_positional_emb  (1, 1, D)   the mark on the slots that will be kept

The 8B models hold two LoRA adapters in PEFT's names as well: ``default`` is active while a text is written and
``decoder_adapter`` while the pool is read, by prompt and pool alike; each alone, never both. They become the pool's
LoRA for writing and for reading, so the backbone keeps the plain weights, which other memories can share.

M+ is another method (a long-term memory and its retriever); its folders are refused by their unexpected tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byheart.methods.latent_pool import LatentPool
from byheart.model.backbone import Backbone
from byheart.model.lora import LoRA
from byheart.published.shards import Shapes, low_rank_shapes, require, require_keys, settings, shapes, shards

_KEPT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act", "rms_norm_eps"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings"),
    *("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id"),
)
_NEEDED = ("num_blocks", "num_tokens", "hidden_size", "num_hidden_layers", "max_position_embeddings")
# Frequencies are computed from the settings.
_IGNORED = ("rotary_emb.inv_freq",)


@dataclass(frozen=True)
class _Adapters:
    """The published LoRA adapters: the names of the one that writes and the one that reads, and what they update."""

    writes: str = "default"
    reads: str = "default"
    rank: int = 0
    alpha: float = 1.0
    targets: tuple[str, ...] = ()

    def base_name(self, parameter: str) -> str:
        """PEFT's name of a parameter: in an updated linear layer it is one level deeper."""
        path, _, last = parameter.rpartition(".")
        return f"{path}.base_layer.{last}" if path.rpartition(".")[2] in self.targets else parameter

    def shapes(self, weights: Mapping[str, Tensor]) -> Shapes:
        """Names and shapes of the adapters' tensors."""
        updated = {
            name.removesuffix(".weight"): weight
            for name, weight in weights.items()
            if name.endswith(".weight") and self.base_name(name) != name
        }
        return {
            name: shape
            for adapter in (self.writes, self.reads)
            for name, shape in low_rank_shapes(updated, self.rank, adapter).items()
        }


def memoryllm(
    folder: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    keep_hidden: bool = False,
) -> LatentPool:
    """Open a released MemoryLLM: its pool, ready to be read and written, over a stock Llama (``.backbone``).

    Weights go from disk into place tensor by tensor: the most memory used is the model, its pool and one shard.

    Args:
        folder: a released folder, with ``config.json`` and safetensors or ``.bin`` files, whole or in shards.
        dtype, device: as for ``model.loading.open_model``; LoRA stays in float32.
        seed, keep_hidden: as for ``LatentPool``.

    Raises CheckpointError listing tensors that are missing, unexpected or of the wrong shape, or absent settings.
    """
    where = Path(folder).expanduser()
    config = settings(where / "config.json", _NEEDED)
    adapters = _adapters(where, config)
    pool: dict[str, Tensor] = {}
    backbone = Backbone.assembled(
        _llama(config),
        lambda weights: pool.update(_fill(where, config, adapters, weights)),
        dtype=dtype,
        device=device,
        source=str(where),
    )
    method = LatentPool(
        backbone,
        slots=config["num_tokens"],
        blocks=config["num_blocks"],
        forget="layer" if config.get("drop_memory_per_layer") else "shared",
        seed=seed,
        keep_hidden=keep_hidden,
        rank=adapters.rank,
        alpha=adapters.alpha,
        targets=adapters.targets,
    )
    with torch.no_grad():
        method.first.copy_(pool["bos_embedding"])
        method.mark.copy_(pool["new_memory_positional_emb"].view(-1))
    _set(method.writing, adapters.writes, pool)
    _set(method.reading, adapters.reads, pool)
    if pool["initialized"].item():
        method.fill(pool["memory"])
    method.train(False)
    return method


def _adapters(where: Path, config: Mapping[str, Any]) -> _Adapters:
    """What the settings say of LoRA; of rank 0 for the 7B, whose LoRA was merged before its release."""
    card = config.get("lora_config")
    if not card:
        return _Adapters()
    require_keys(where / "config.json", card, ("r", "lora_alpha", "target_modules"))
    reads = "decoder_adapter" if config.get("add_decoder_lora") else "default"
    return _Adapters("default", reads, card["r"], float(card["lora_alpha"]), tuple(card["target_modules"]))


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stock Llama that sees positions as the released one does.

    The released code bounds no text. Here the pool's slots come on top of what the base model reads; training saw fewer
    tokens after a full pool (255 for the 7B, 2047 for the 8B).
    """
    pool = 1 + config["num_blocks"] * config["num_tokens"]
    return {
        "model_type": "llama",
        **{key: config[key] for key in _KEPT if config.get(key) is not None},
        "rope_parameters": _rope(config),
        "max_position_embeddings": pool + config["max_position_embeddings"],
    }


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings as transformers 5 names them; interpolation shrinks positions so that the pool fits."""
    scaling = dict(config.get("rope_scaling") or {})
    kind = scaling.pop("type", "default")
    rope = {"rope_type": kind, **scaling, "rope_theta": config.get("rope_theta", 10000.0)}
    if config.get("interpolate_position_ids"):
        slots = (config["num_blocks"] + 1) * config["num_tokens"]
        rope |= {"rope_type": "linear", "factor": slots / config["max_position_embeddings"]}
    return rope


def _fill(
    where: Path, config: Mapping[str, Any], adapters: _Adapters, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Write the Llama's weights in place; gives MemoryLLM's own tensors, and those of LoRA in float32."""
    low_rank = adapters.shapes(weights)
    expected_pool = {**_own_shapes(config), **low_rank}
    bases = {adapters.base_name(name): weight for name, weight in weights.items()}
    # A tied head is the embedding again.
    ignored = _IGNORED if "lm_head.weight" in weights else (*_IGNORED, "lm_head.weight")
    expected = {name: tuple(weight.shape) for name, weight in bases.items()}
    require(where, shapes(where), {**expected, **expected_pool}, ignored=ignored)
    like = next(iter(weights.values()))
    taken: dict[str, Tensor] = {}
    for shard in shards(where):
        for name, tensor in shard.items():
            if name in bases:
                bases[name].copy_(tensor)
            elif name in expected_pool:
                taken[name] = tensor.to(like.device, torch.float32 if name in low_rank else like.dtype, copy=True)
    return taken


def _own_shapes(config: Mapping[str, Any]) -> Shapes:
    layers, dim = config["num_hidden_layers"], config["hidden_size"]
    return {
        "memory": (layers, config["num_blocks"] * config["num_tokens"], dim),
        "bos_embedding": (layers, 1, dim),
        "new_memory_positional_emb": (1, 1, dim),
        "initialized": (),
    }


@torch.no_grad()
def _set(lora: LoRA | None, adapter: str, taken: Mapping[str, Tensor]) -> None:
    if lora is None:
        return
    for path, down, up in zip(lora.paths, lora.down, lora.up, strict=True):
        down.copy_(taken[f"model.{path}.lora_A.{adapter}.weight"])
        up.copy_(taken[f"model.{path}.lora_B.{adapter}.weight"])
