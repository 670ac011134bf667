"""MemoryLLM's released checkpoints (Wang et al. 2024, arXiv 2402.04624): memoryllm-7b, memoryllm-8b, memoryllm-8b-chat.

A folder holds a Llama, its trained pool and what goes with it, under these names (L layers, N = blocks x slots, D):

    memory                     (L, N, D)   the pool, oldest slot first; noise where ``initialized`` is 0
    bos_embedding              (L, 1, D)   the slot that stands first
    new_memory_positional_emb  (1, 1, D)   the mark on the slots that will be kept

The 8B models hold two LoRA adapters in PEFT's names as well: ``default`` is active while a text is written and
``decoder_adapter`` while the pool is read, by prompt and pool alike; each alone, never both. They become the pool's
LoRA for writing and for reading, so the backbone keeps the plain weights, which other memories can share.

Where the published code casts the whole model to float16 or bfloat16, it casts the rotary frequencies too. The 7B's
code then makes positions, angles and cosines in that type, the code of the 8B and of M+ in float32. Files do not say to
which type a model was cast; ``rotary`` does. The 7B's code makes its table anew at the first sequence of more than
``max_position_embeddings``, and reads exact angles before; here they are rounded from the beginning.

M+ is another method (a long-term memory and its retriever), see ``mplus``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byheart.errors import CheckpointError, require_one_of
from byheart.methods.latent_pool import LatentPool
from byheart.model.backbone import Backbone
from byheart.model.lora import LoRA
from byheart.model.rope import ROUNDED
from byheart.protocol.checkpoint import DTYPES
from byheart.protocol.settings import read_settings
from byheart.published.hub import find_folder
from byheart.published.settings import Llama, MemoryLLMConfig
from byheart.published.shards import Shapes, copy, low_rank_shapes, require, shapes, shards, size

# Frequencies are computed from the settings.
_IGNORED = ("rotary_emb.inv_freq",)
_FILLED = "initialized"
_EXACT, _ROTARY = "float32", ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Adapters:
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
    rotary: str = _EXACT,
) -> LatentPool:
    """Open a released MemoryLLM: its pool, ready to be read and written, over a stock Llama (``.backbone``).

    Weights go from disk into place tensor by tensor: the most memory used is the model, its pool and one shard.

    Args:
        folder: a released folder, with ``config.json`` and safetensors or ``.bin`` files, whole or in shards; or its
            name on the hub, such as ``YuWangX/memoryllm-8b``, see ``hub``. ``.backbone.source`` is where it lies.
        dtype, device: as for ``model.loading.open_model``; LoRA stays in float32.
        seed, keep_hidden: as for ``LatentPool``.
        rotary: the type to which the published code had cast its rotary positions, ``float16`` or ``bfloat16``; the
            model's config keeps it. Published evaluations of the 7B ran in float16, the 8B's README says bfloat16;
            what the weights want was not measured.

    Raises CheckpointError naming tensors that are missing, unexpected, of the wrong shape or not finite, and settings
    that are absent or of another type; before any weight is allocated, where the files are too small for the settings.
    """
    where = find_folder(folder)
    config = read_settings(where / "config.json", MemoryLLMConfig)
    found = shapes(where)
    if "ltm.0" in found:
        raise CheckpointError(
            f"'{where}' holds an M+; read it as mplus: byheart import mplus, byheart.published.mplus."
        )
    require_bytes(where, config)
    adapters = adapters_of(config)
    pool: dict[str, Tensor] = {}
    backbone = Backbone.assembled(
        llama_settings(config, rotary=rotary),
        lambda weights: pool.update(fill(where, found, pool_shapes(config), adapters, weights, flag=_FILLED)),
        dtype=dtype,
        device=device,
        source=str(where),
    )
    method = LatentPool(
        backbone,
        slots=config.num_tokens,
        blocks=config.num_blocks,
        forget="layer" if config.drop_memory_per_layer else "shared",
        seed=seed,
        keep_hidden=keep_hidden,
        rank=adapters.rank,
        alpha=adapters.alpha,
        targets=adapters.targets,
        own_start=True,
    )
    with torch.no_grad():
        method.first.copy_(pool["bos_embedding"])
        method.mark.copy_(pool["new_memory_positional_emb"].view(-1))
    set_lora(method.writing, adapters.writes, pool)
    set_lora(method.reading, adapters.reads, pool)
    if pool[_FILLED].item() not in (0, 1):
        raise CheckpointError(f"'{where}': {_FILLED} must be 0 or 1; it is {pool[_FILLED].item()}.")
    if pool[_FILLED].item():
        method.fill(pool["memory"])
    method.train(False)
    return method


def require_bytes(where: Path, config: MemoryLLMConfig) -> None:
    """Raise CheckpointError where the files cannot hold what the settings promise."""
    least = config.numbers * min(dtype.itemsize for dtype in DTYPES)
    held = size(where)
    if held < least:
        raise CheckpointError(
            f"'{where}' does not fit its settings: they speak of {least:,} bytes of tensors or more, and its files "
            f"have {held:,}. Download it again."
        )


def adapters_of(config: MemoryLLMConfig) -> Adapters:
    """What the settings say of LoRA; of rank 0 for the 7B, whose LoRA was merged before its release."""
    card = config.lora_config
    if card is None:
        return Adapters()
    reads = "decoder_adapter" if config.add_decoder_lora else "default"
    return Adapters("default", reads, card.r, card.lora_alpha, tuple(card.target_modules))


def llama_settings(config: MemoryLLMConfig, *, rotary: str = _EXACT) -> dict[str, Any]:
    """The settings of a stock Llama that sees positions as the released one does. Raises UsageError.

    The released code bounds no text. Here the pool's slots come on top of what the base model reads; training saw fewer
    tokens after a full pool (255 for the 7B, 2047 for the 8B).
    """
    require_one_of("rotary", rotary, _ROTARY)
    rope = _rope(config)
    # Frequencies were rounded before linear scaling, which the published code does to positions.
    factor = rope["factor"] if rope["rope_type"] == "linear" else 1.0
    # The code without LoRA is the older one.
    rounding = {"to": rotary, "whole": config.lora_config is None, "factor": factor}
    return {
        "model_type": "llama",
        **config.model_dump(include=set(Llama.model_fields), exclude_none=True),
        "rope_parameters": rope,
        "max_position_embeddings": 1 + config.slots + config.max_position_embeddings,
        **({} if rotary == _EXACT else {ROUNDED: rounding}),
    }


def _rope(config: MemoryLLMConfig) -> dict[str, Any]:
    """Rotary settings as transformers 5 names them; interpolation shrinks positions so that the pool fits."""
    scaling = config.rope_scaling.parameters() if config.rope_scaling else {"rope_type": "default"}
    rope = {**scaling, "rope_theta": config.rope_theta}
    if config.interpolate_position_ids:
        slots = config.slots + config.num_tokens
        rope |= {"rope_type": "linear", "factor": slots / config.max_position_embeddings}
    return rope


def fill(
    where: Path,
    found: Shapes,
    own: Shapes,
    adapters: Adapters,
    weights: Mapping[str, Tensor],
    *,
    exact: Collection[str] = (),
    unused: Collection[str] = (),
    flag: str = "",
) -> dict[str, Tensor]:
    """Write the Llama's weights in place; gives the tensors of ``own``, and those of LoRA in float32.

    Args:
        found: the shapes of all tensors in the files.
        exact: names in ``own`` of what is read in float32 too.
        unused: ends of names of tensors that may be there and are not read.
        flag: the name of a whole number that is given too.
    """
    low_rank = adapters.shapes(weights)
    expected_pool = {**own, **low_rank}
    bases = {adapters.base_name(name): weight for name, weight in weights.items()}
    # A tied head is the embedding again.
    ignored = (*_IGNORED, *unused) if "lm_head.weight" in weights else (*_IGNORED, *unused, "lm_head.weight")
    expected = {name: tuple(weight.shape) for name, weight in bases.items()}
    require(where, found, {**expected, **expected_pool, **({flag: ()} if flag else {})}, ignored=ignored)
    like = next(iter(weights.values()))
    wide = {*low_rank, *exact}
    taken = {
        name: torch.empty(shape, dtype=torch.float32 if name in wide else like.dtype, device=like.device)
        for name, shape in expected_pool.items()
    }
    targets = {**bases, **taken}
    for shard in shards(where):
        for name, tensor in shard.items():
            if name in targets:
                copy(where, name, tensor, targets[name])
            elif name == flag:
                taken[name] = tensor
    return taken


def pool_shapes(config: MemoryLLMConfig) -> Shapes:
    """Names and shapes of the pool's own tensors."""
    layers, dim = config.num_hidden_layers, config.hidden_size
    return {
        "memory": (layers, config.pool_slots, dim),
        "bos_embedding": (layers, 1, dim),
        "new_memory_positional_emb": (1, 1, dim),
    }


@torch.no_grad()
def set_lora(lora: LoRA | None, adapter: str, taken: Mapping[str, Tensor]) -> None:
    """Put a published adapter into ``lora``, where there is one."""
    if lora is None:
        return
    for path, down, up in zip(lora.paths, lora.down, lora.up, strict=True):
        down.copy_(taken[f"model.{path}.lora_A.{adapter}.weight"])
        up.copy_(taken[f"model.{path}.lora_B.{adapter}.weight"])
