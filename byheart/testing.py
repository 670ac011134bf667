"""Tiny random models of many families, for tests of memories, including other people's.

Everything is random but seeded; a model has three layers and a hundred-odd tokens, and runs in milliseconds.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from byheart.model import attention
from byheart.model.backbone import Backbone
from byheart.model.loading import taking_attention

VOCABULARY = 128
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA = {"sliding_window": 512, "query_pre_attn_scalar": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {},
    "smollm3": {"num_hidden_layers": 4},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": {},
    "phi3": {},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
}


FIXED_FAMILIES: dict[str, dict[str, Any]] = {"gpt2": {}, "gptj": {"rotary_dim": 4}}
"""Families whose keys cannot be moved: methods that leave them where they are work on these too."""


def tiny_model(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any
) -> PreTrainedModel:
    """A random model of ``family`` (a transformers model type), reproducible by ``seed``.

    Args:
        settings: of its config, instead of the small ones.
    """
    config = AutoConfig.for_model(family, **{**_SMALL, **{**FAMILIES, **FIXED_FAMILIES}.get(family, {}), **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with taking_attention(attention.register()):
            model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, attn_implementation=attention.NAME
            )
        for parameter in model.parameters():
            # Norms start at one and biases at zero; a test must notice where either is forgotten.
            parameter.data += 0.1 * torch.randn_like(parameter)
    tiny: PreTrainedModel = model.to(dtype).eval()
    return tiny


def tiny_backbone(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any
) -> Backbone:
    """A backbone over ``tiny_model``."""
    return Backbone(tiny_model(family, seed=seed, dtype=dtype, **settings), source=f"tiny-{family}")
