"""A low-rank update in the files of PEFT (https://github.com/huggingface/peft), which other tools load.

    adapter_config.json          how the update is made
    adapter_model.safetensors    base_model.model.<decoder>.<path>.lora_A.weight (R, in), lora_B.weight (out, R)

It does not know which method learned the update.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save as serialize
from torch import Tensor

from byheart.files import replacing


def write(
    folder: Path,
    updates: Mapping[str, tuple[Tensor, Tensor]],
    *,
    decoder: str,
    base: str,
    alpha: float,
    dropout: float = 0.0,
    transposed: bool = False,
) -> None:
    """Write updates of all linear layers of their names; each file whole or not at all.

    Args:
        updates: path in the decoder -> down (R, in) and up (out, R).
        decoder: its path in the model.
        base: the model's name or folder.
        transposed: whether the model stores these layers' weights (in, out), as GPT-2 does.
    """
    tensors, ranks = {}, set()
    for path, (down, up) in updates.items():
        name = f"base_model.model.{decoder}.{path}"
        tensors[f"{name}.lora_A.weight"] = down.detach().cpu().contiguous()
        tensors[f"{name}.lora_B.weight"] = up.detach().cpu().contiguous()
        ranks.add(down.shape[0])
    (rank,) = ranks
    card = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": sorted({path.rpartition(".")[2] for path in updates}),
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "adapter_model.safetensors") as weights:
        weights.write_bytes(serialize(dict(tensors), metadata={"format": "pt"}))
    with replacing(folder / "adapter_config.json") as written:
        written.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
