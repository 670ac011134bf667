"""M+'s released checkpoint (Wang et al. 2025, arXiv 2502.00592): mplus-8b.

A folder is laid out as MemoryLLM's 8B, without ``initialized``, and holds of each layer l (S slots to start with, P):

    ltm.l                                       (S, D)       the long-term memory, in order of arrival
    ltm_keys.l                                  (S, P)       their addresses, made while the retriever was trained
    ltm_ages.l, ltm_recall_frequencies.l        (S,)         how old they are, and the merges that they stay for
    model.layers.l.self_attn.query_proj.0, .2   (2P, D), (P, 2P)   the retriever of prompts
    model.layers.l.self_attn.key_proj.0, .2                        and of slots

``encoder_query_proj`` is not read: only training used it. Rotary frequencies stay in float32; the published README
rounds them to bfloat16, as ``rotary`` can, and which of the two the weights want was not measured. Names and shapes are
those of the code.
**This was tried on tiny models that the published code was run on, not on the released weights.**
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from byheart.errors import CheckpointError
from byheart.methods.long_term_pool import LongTermPool
from byheart.model.backbone import Backbone
from byheart.protocol.settings import read_settings
from byheart.protocol.slot_search import Projector
from byheart.published.hub import find_folder
from byheart.published.memoryllm import (
    adapters_of,
    fill,
    llama_settings,
    pool_shapes,
    require_bytes,
    set_lora,
)
from byheart.published.settings import MPlusConfig
from byheart.published.shards import Shapes, shapes

_UNUSED = ("encoder_query_proj.0.weight", "encoder_query_proj.2.weight")
_MOST = 153_600
_OLDEST = 1 << 31


def mplus(
    folder: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    order: str = "written",
    rotary: str = "float32",
) -> LongTermPool:
    """Open a released M+: its pool, long-term memory and retriever, over a stock Llama (``.backbone``).

    Args:
        folder: a released folder, with ``config.json`` and safetensors or ``.bin`` files, whole or in shards; or its
            name on the hub, as for ``memoryllm``.
        dtype, device: as for ``model.loading.open_model``; LoRA and the retriever stay in float32.
        seed, order: as for ``LongTermPool``. With ``written``, the slots of the file's long-term memory count as older
            than its pool: the file does not say how old that is.
        rotary: as for ``memoryllm``; ``bfloat16`` is what the published README says.

    Raises CheckpointError as ``memoryllm`` does.
    """
    where = find_folder(folder)
    config = read_settings(where / "config.json", MPlusConfig)
    found = shapes(where)
    require_bytes(where, config)
    adapters, own = adapters_of(config), _own_shapes(config)
    taken: dict[str, Tensor] = {}

    def put(weights: Mapping[str, Tensor]) -> None:
        """Fill the model, and keep the norms that stand before the retriever."""
        taken.update(fill(where, found, own, adapters, weights, exact=_exact(own), unused=_UNUSED))
        taken.update((name, weight) for name, weight in weights.items() if name.endswith("input_layernorm.weight"))

    settings = llama_settings(config, rotary=rotary)
    backbone = Backbone.assembled(settings, put, dtype=dtype, device=device, source=str(where))
    method = LongTermPool(
        backbone,
        slots=config.num_tokens,
        blocks=config.num_blocks - config.num_ltm_blocks,
        recalled=config.num_ltm_blocks,
        merge_every=config.update_ltm_frequency,
        lives=config.initial_rf_when_moving_stm_to_ltm,
        decay=config.decay_frequency,
        most=max(_MOST, config.ltm_initial_size, config.num_ltm_blocks * config.num_tokens),
        width=config.selector_hidden_dim,
        order=order,
        started=config.ltm_initial_size,
        seed=seed,
        rank=adapters.rank,
        alpha=adapters.alpha,
        targets=adapters.targets,
    )
    with torch.no_grad():
        method.pool.first.copy_(taken["bos_embedding"])
        method.pool.mark.copy_(taken["new_memory_positional_emb"].view(-1))
        _set_projector(method.query, "query_proj", taken)
        _set_projector(method.address, "key_proj", taken)
        _set_long_term(where, method, taken)
    set_lora(method.pool.writing, adapters.writes, taken)
    set_lora(method.pool.reading, adapters.reads, taken)
    method.pool.fill(taken["memory"])
    method.train(False)
    return method


def _own_shapes(config: MPlusConfig) -> Shapes:
    """Names and shapes of what is not the Llama's."""
    dim, width, started = config.hidden_size, config.selector_hidden_dim, config.ltm_initial_size
    own = pool_shapes(config)
    for layer in range(config.num_hidden_layers):
        own |= {f"ltm.{layer}": (started, dim), f"ltm_keys.{layer}": (started, width)}
        own |= {f"ltm_ages.{layer}": (started,), f"ltm_recall_frequencies.{layer}": (started,)}
        for projector in ("query_proj", "key_proj"):
            own[_projector(layer, projector, 0)] = (2 * width, dim)
            own[_projector(layer, projector, 2)] = (width, 2 * width)
    return own


def _exact(own: Shapes) -> list[str]:
    """What is not rounded to the model's type: ages above 256 have no bfloat16 of their own."""
    return [name for name in own if "_proj." in name or name.startswith(("ltm_ages.", "ltm_recall_frequencies."))]


def _projector(layer: int, name: str, place: int) -> str:
    return f"model.layers.{layer}.self_attn.{name}.{place}.weight"


def _set_projector(projector: Projector, name: str, taken: Mapping[str, Tensor]) -> None:
    """Put a published projector in, and the weight of the norm before it."""
    for layer, (inner, outer) in enumerate(zip(projector.inner, projector.outer, strict=True)):
        norm = taken[f"model.layers.{layer}.input_layernorm.weight"].float()
        inner.copy_(taken[_projector(layer, name, 0)] * norm)
        outer.copy_(taken[_projector(layer, name, 2)])


def _set_long_term(where: Path, method: LongTermPool, taken: Mapping[str, Tensor]) -> None:
    """Put the file's long-term memory in. Raises CheckpointError for ages and frequencies that cannot be."""

    def stacked(name: str) -> Tensor:
        return torch.stack([taken[f"{name}.{layer}"] for layer in range(len(method.backbone.layers))])

    ages, lives = stacked("ltm_ages"), stacked("ltm_recall_frequencies")
    if bool(((ages < 0) | (ages >= _OLDEST)).any()):
        raise CheckpointError(
            f"'{where}': ltm_ages must be 0 to {_OLDEST - 1:,}; they are {ages.min()} to {ages.max()}."
        )
    if bool((lives != lives[0]).any()):
        raise CheckpointError(f"'{where}': ltm_recall_frequencies must be alike in all layers, as merges leave them.")
    method.long_hidden.copy_(stacked("ltm"))
    method.long_address.copy_(stacked("ltm_keys"))
    method.long_ages.copy_(ages)
    method.long_lives.copy_(lives[0])
