"""An adapter in PEFT's files (https://github.com/huggingface/peft), read as byheart's method ``adapter``.

    adapter_config.json          how the update is made
    adapter_model.safetensors    base_model.model.<decoder>.<path>.lora_A.weight (R, in), lora_B.weight (out, R)

Read is plain LoRA (Hu et al. 2021, arXiv 2106.09685) of linear layers, with one rank and scale for all; variants that
compute something else, and updates of some layers alone, are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from byheart.errors import UsageError
from byheart.methods.adapter import Adapter
from byheart.model.backbone import Backbone
from byheart.protocol.settings import read_settings
from byheart.published.hub import find_folder
from byheart.published.settings import LoRACard
from byheart.published.shards import copy, require, shapes, shards


class _Card(LoRACard):
    """PEFT's own card; linear layers may have any name, and GPT-2's are transposed, which byheart sees for itself."""

    target_modules: list[Annotated[str, Field(pattern=r"^\w{1,100}$")]] = Field(min_length=1)  # type: ignore[assignment]
    fan_in_fan_out: bool | None = None  # type: ignore[assignment]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


def peft(folder: str | Path, *, base: str | Path | Backbone, dtype: str = "auto", device: str = "auto") -> Adapter:
    """Open a PEFT adapter over the model that it was trained on.

    Args:
        folder: with ``adapter_config.json`` and the weights; or its name on the hub, see ``hub``.
        base: the model it was trained on: a folder, a hub id, or a backbone that is already open.
        dtype, device: of a base that is opened here; the adapter stays in float32.

    Raises CheckpointError naming tensors that are missing, unexpected or of another shape, as those of another model's
    adapter are, and settings of other kinds of adapters; ModelError for a base that cannot be opened.
    """
    where = find_folder(folder)
    card = read_settings(where / "adapter_config.json", _Card)
    backbone = base if isinstance(base, Backbone) else Backbone.open(str(base), dtype=dtype, device=device)
    linears = {path for index in range(len(backbone.layers)) for path in backbone.linears(index)}
    absent = set(card.target_modules) - {path.rpartition(".")[2] for path in linears}
    if absent:
        raise UsageError(
            f"'{where}' updates {', '.join(sorted(absent))}, which model '{backbone.source}' does not have: it is an "
            "adapter of another model. Give the one that it was trained on as base (--base)."
        )
    linear_names = sorted(card.target_modules)
    method = Adapter(backbone, linears=linear_names, rank=card.r, alpha=card.lora_alpha, dropout=card.lora_dropout)
    places: dict[str, Tensor] = {}
    for path, down, up in zip(method.lora.paths, method.lora.down, method.lora.up, strict=True):
        name = f"base_model.model.{backbone.decoder_path}.{path}"
        places |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    require(where, shapes(where), {name: tuple(place.shape) for name, place in places.items()})
    for shard in shards(where):
        for name, tensor in shard.items():
            copy(where, name, tensor, places[name])
    return method
