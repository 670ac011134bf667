"""What the settings of released checkpoints may say: types, bounds, and what must fit together.

Keys stand here where byheart uses them, or where another value than the one it takes for granted would change what
the checkpoint computes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from byheart.protocol.settings import Settings

Count: TypeAlias = Annotated[int, Field(ge=1, lt=1 << 31)]
Layers: TypeAlias = Annotated[int, Field(ge=1, le=1024)]
Positions: TypeAlias = Annotated[int, Field(ge=1, le=1 << 24)]
Token: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 31)]
Positive: TypeAlias = Annotated[float, Field(gt=0, le=1e12)]
Linear: TypeAlias = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Off: TypeAlias = Literal[False, None]


class LoRACard(Settings):
    """How a LoRA was made, in PEFT's words; variants that compute something else are refused."""

    r: Count
    lora_alpha: Positive
    target_modules: list[Linear] = Field(min_length=1)
    peft_type: Literal["LORA", None] = None
    bias: Literal["none", None] = None
    fan_in_fan_out: Off = None
    use_rslora: Off = None
    use_dora: Off = None
    rank_pattern: Annotated[dict[str, int], Field(max_length=0)] | None = None
    alpha_pattern: Annotated[dict[str, float], Field(max_length=0)] | None = None


class RopeScaling(Settings):
    """Rotary scaling as configs of transformers 4 name it; a kind that is not here needs more than these."""

    rope_type: Literal["default", "linear", "dynamic", "llama3", None] = None
    type: Literal["default", "linear", "dynamic", "llama3", None] = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Positions | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> RopeScaling:
        bands = (self.low_freq_factor, self.high_freq_factor, self.original_max_position_embeddings)
        if self.kind != "default" and self.factor is None:
            raise ValueError("factor is needed")
        if self.kind == "llama3" and (None in bands or self.low_freq_factor == self.high_freq_factor):
            raise ValueError("llama3 needs original_max_position_embeddings and two different frequency factors")
        return self

    @property
    def kind(self) -> str:
        """The name that transformers knows it by."""
        return self.rope_type or self.type or "default"

    def parameters(self) -> dict[str, Any]:
        """The same, as transformers 5 names it."""
        return {"rope_type": self.kind, **self.model_dump(exclude={"rope_type", "type"}, exclude_none=True)}


class Llama(Settings):
    """The part of a Llama's ``config.json`` that every Llama of that size and kind has."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Layers
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: Literal["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"] = "silu"
    rms_norm_eps: Positive = 1e-6
    initializer_range: Annotated[float, Field(ge=0, le=1)] = 0.02
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: Token | None = None
    eos_token_id: Token | list[Token] | None = None
    pad_token_id: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None

    @field_validator("pad_token_id")
    @classmethod
    def _without_padding(cls, token: int | None) -> int | None:
        """Older Llamas say -1 where there is no padding."""
        return None if token == -1 else token


class MemoryLLMConfig(Llama):
    """MemoryLLM's ``config.json``: that of a Llama, and of the pool and the LoRA over it."""

    num_blocks: Annotated[int, Field(ge=2, lt=1 << 31)]
    num_tokens: Count
    max_position_embeddings: Positions
    rope_theta: Positive = 10000.0
    rope_scaling: RopeScaling | None = None
    interpolate_position_ids: bool = False
    drop_memory_per_layer: bool = False
    add_decoder_lora: bool = False
    lora_config: LoRACard | None = None

    @model_validator(mode="after")
    def _fits(self) -> MemoryLLMConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.num_attention_heads % self._key_heads:
            raise ValueError(f"{self.num_attention_heads} heads are no multiple of {self._key_heads} key-value heads")
        if self._width % 2:
            raise ValueError(f"a head of width {self._width} has no rotary positions; it must be even")
        ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        outside = [token for token in (self.bos_token_id, self.pad_token_id, *ends) if (token or 0) >= self.vocab_size]
        if outside:
            raise ValueError(f"token {outside[0]} is none of the {self.vocab_size} of vocab_size")
        return self

    @property
    def _key_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def _width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def slots(self) -> int:
        """Slots that a prompt reads in each layer."""
        return self.num_blocks * self.num_tokens

    @property
    def pool_slots(self) -> int:
        """Slots of the pool in each layer."""
        return self.slots

    @property
    def stored_slots(self) -> int:
        """Slots in the files in each layer."""
        return self.slots

    @property
    def numbers(self) -> int:
        """How many numbers the large tensors hold: embeddings, projections and the pool."""
        heads = 2 * self._width * (self.num_attention_heads + self._key_heads)
        layer = heads + 3 * self.intermediate_size + self.stored_slots
        tables = self.vocab_size * (1 if self.tie_word_embeddings else 2)
        return self.hidden_size * (self.num_hidden_layers * layer + tables)


class MPlusConfig(MemoryLLMConfig):
    """M+'s ``config.json``: MemoryLLM's, and of the long-term memory and its retriever; ``num_blocks`` counts both."""

    num_ltm_blocks: Count
    ltm_initial_size: Annotated[int, Field(ge=0, lt=1 << 31)]
    update_ltm_frequency: Count
    initial_rf_when_moving_stm_to_ltm: Positive
    decay_frequency: Positive
    selector_hidden_dim: Count
    add_selector: Literal[True]
    num_selector_layers: Literal[2]
    update_ltm_mode: Literal["immediate"]
    selector_layers: None = None

    @model_validator(mode="after")
    def _has_a_pool(self) -> MPlusConfig:
        if self.num_blocks - self.num_ltm_blocks < 2:
            raise ValueError(
                f"num_blocks {self.num_blocks} must be 2 or more above num_ltm_blocks {self.num_ltm_blocks}"
            )
        return self

    @property
    def pool_slots(self) -> int:
        """Slots of the pool in each layer; the rest is read from the long-term memory."""
        return (self.num_blocks - self.num_ltm_blocks) * self.num_tokens

    @property
    def stored_slots(self) -> int:
        """Slots in the files in each layer, those of the long-term memory too."""
        return self.pool_slots + self.ltm_initial_size
