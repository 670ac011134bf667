"""The frozen model that every method shares: run it, read hidden states, project keys, change nothing.

Everything that reaches into a transformers model is in this folder: ``loading`` opens one, ``anatomy`` measures one,
``kv_cache`` is what its layers write to. A backbone is never trained and never edited: readings change what
one pass sees, through hooks and a cache, and leave no trace.

Dimensions: B batch, L layers, H key-value heads, M slots of memory, T tokens, D hidden, W head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from byheart.errors import UnsupportedModelError, UsageError
from byheart.model import attention
from byheart.model.anatomy import (
    Anatomy,
    LayerCheckpoint,
    hides_slots,
    hooked,
    keyless_linears,
    measure,
    named_arguments,
    noise,
    skipped,
    tap,
    with_cache,
)
from byheart.model.feed_forward import FeedForward, FeedForwardInput, feed_forward, find_block, roles_in
from byheart.model.few_rows import Products
from byheart.model.fingerprint import fingerprint_model, sample_fingerprint, without_remainder
from byheart.model.known import name_opened
from byheart.model.kv_cache import PrefixCache
from byheart.model.linear import LINEARS, Linear
from byheart.model.loading import empty_model, open_model, opening
from byheart.model.reading import KV, Delta, Reading, cast, delta_hook
from byheart.model.rope import Rounding

Change: TypeAlias = tuple[Linear, Callable[..., Tensor]]


class Backbone:
    """A frozen decoder, measured once. Its weights are set to need no gradient, and nothing here changes them.

    Args:
        model: any transformers decoder. Where its positions are not rotary, its keys stay where they were made, and
            methods that move them say so when they write or read. Raises UnsupportedModelError, naming the layer, where
            a memory could not be read.
        source: how the model was named when it was opened; kept with states so that they can be opened again.
    """

    def __init__(self, model: PreTrainedModel, *, source: str = "") -> None:
        self.model: PreTrainedModel = model.requires_grad_(False).train(False)
        self.source = source
        self.config = model.config.get_text_config()
        decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
        embedding = model.get_input_embeddings()
        if not isinstance(decoder, nn.Module) or not isinstance(embedding, nn.Embedding):
            raise UnsupportedModelError(f"{type(model).__name__} is not a decoder with layers and token embeddings.")
        self.decoder = decoder
        self.embedding = embedding
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.dim: int = self.config.hidden_size
        # Phi-3 and others may hold no such key; then only the machine's memory bounds the text.
        self.positions: int = getattr(self.config, "max_position_embeddings", None) or 1 << 20
        # The head's output is multiplied by it: Granite divides its logits by one number; Cohere multiplies by another.
        self.logit_scale: float = (getattr(self.config, "logit_scale", None) or 1.0) / (
            getattr(self.config, "logits_scaling", None) or 1.0
        )
        # The bound that Gemma 2 puts on its logits by a tanh; None elsewhere.
        self.softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        # The token that texts begin with; 0 where the model names none.
        self.first_token: int = getattr(self.config, "bos_token_id", None) or 0
        self.anatomy: Anatomy = measure(
            decoder, dim=self.dim, dtype=self.dtype, device=self.device, positions=self.positions
        ).rounded(Rounding.of(self.config, self.positions))
        self.layers: Sequence[nn.Module] = self.anatomy.layers
        self._blocks: dict[int, FeedForward] = {}
        self._products = Products(self.model)

    @classmethod
    def open(cls, model: str, *, dtype: str = "auto", device: str = "auto") -> Backbone:
        """Open a model by alias, hub id, folder or GGUF file; see ``loading.open_model``."""
        loaded = open_model(model, dtype=dtype, device=device, attention=attention.register())
        with opening(f"Model '{model}' could not be run"):
            opened = cls(loaded, source=model)
        name_opened(opened)
        return opened

    @classmethod
    def assembled(
        cls,
        config: Mapping[str, Any],
        fill: Callable[[Mapping[str, Tensor]], None],
        *,
        dtype: str = "auto",
        device: str = "auto",
        source: str = "",
    ) -> Backbone:
        """A backbone of ``config``'s architecture whose weights ``fill(name -> empty parameter)`` writes in place.

        For checkpoints that transformers does not read; ``config``, ``dtype`` and ``device`` as in
        ``loading.empty_model``.
        """
        model = empty_model(config, dtype=dtype, device=device, attention=attention.register())
        with torch.no_grad():
            fill(dict(model.named_parameters()))
        return cls(model, source=source)

    # ---- running ----

    def embed(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Token embeddings, as the decoder takes them."""
        embedded: Tensor = self.embedding(tokens.to(self.device))
        return embedded

    def hidden(
        self,
        tokens: Int[Tensor, "B T"] | None = None,
        *,
        embeds: Float[Tensor, "B T D"] | None = None,
        cache: PrefixCache | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
        positions: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The decoder's final hidden states, ready for ``logits``; the cache, where given, grows by T.

        Args:
            tokens, embeds: one of the two.
            mask: False where a row is padded; padding stands on the left of the tokens.
            positions: instead of those that follow the cache.
        """
        given = [self.embed(tokens)] if tokens is not None else []
        given += [embeds] if embeds is not None else []
        if len(given) != 1:
            raise UsageError("Give either tokens or embeds.")
        seen, following = (PrefixCache(0) if cache is None else cache).step(given[0], mask)
        with self.anatomy.as_rounded(), self._products.fast(given[0]):
            out = self.decoder(
                inputs_embeds=given[0],
                attention_mask=seen,
                position_ids=positions if positions is not None else following,
                use_cache=cache is not None,
                **{self.anatomy.cache_argument: cache},
            )
        last: Tensor = out.last_hidden_state
        return last

    def logits(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Next-token logits in float32, by the model's own head."""
        with self._products.fast(hidden):
            out = self.head(hidden).float() * self.logit_scale
        return torch.tanh(out / self.softcap) * self.softcap if self.softcap else out

    @cached_property
    def head(self) -> nn.Linear:
        """The linear layer from hidden states to the vocabulary."""
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if not isinstance(head, nn.Linear):
            raise UnsupportedModelError(f"{type(self.model).__name__} has no linear output head.")
        return head

    def finish(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """What follows the last layer: the final norm."""
        for module in self.anatomy.norms:
            hidden = module(hidden)
        return hidden

    # ---- keys and values ----

    def project(self, rows: Sequence[Float[Tensor, "B M D"]]) -> KV:
        """Keys and values, as of position 0, for hidden states that stand at each layer's input.

        The model's own norm, projections and key norm make them; no attention and no feed-forward block runs.
        """
        if not rows[0].shape[1]:
            raise UsageError(f"There are no hidden states to project for a batch of {len(rows[0])}.")
        taken = []
        layers = zip(self.layers, self.anatomy.arguments, rows, self._keyless, strict=True)
        for index, (layer, given, x, keyless) in enumerate(layers):
            with skipped(keyless):
                taken.append(tap(layer, given, x, index))
        return KV(*zip(*taken, strict=True))

    @cached_property
    def _keyless(self) -> list[tuple[Linear, ...]]:
        """The linear layers that keys and values do not need, of each layer."""
        x = noise(2, self.dim, self.dtype, self.device)
        layers = enumerate(zip(self.layers, self.anatomy.arguments, strict=True))
        with torch.no_grad():
            return [keyless_linears(layer, given, x, index) for index, (layer, given) in layers]

    def rotate(self, kv: KV, steps: int | Tensor | Sequence[Tensor], *, start: int = 0) -> KV:
        """The same memory with its keys ``steps`` positions later; one number, a tensor, or one tensor per layer.

        ``start`` is the layer that the memory begins with. Raises UnsupportedModelError where the model's keys cannot
        be moved.
        """
        if isinstance(steps, int) and steps == 0:
            return kv
        self.anatomy.require_rotations(type(self.model).__name__)
        each = [steps] * len(kv.keys) if isinstance(steps, (int, Tensor)) else steps
        rotated = zip(self.anatomy.rotations[start : start + len(kv.keys)], kv.keys, each, strict=True)
        return KV(tuple(rotation.rotate(k, step) for rotation, k, step in rotated), kv.values, kv.masks)

    @cached_property
    def slot(self) -> KV:
        """Some slot (1, H, 1, W), for its shapes and its type."""
        x = torch.zeros(1, 1, self.dim, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            taken = [tap(layer, self.anatomy.arguments[i], x, i) for i, layer in enumerate(self.layers)]
        return KV(*zip(*taken, strict=True))

    @cached_property
    def slot_bytes(self) -> int:
        """Bytes of one slot: keys and values in all layers."""
        return sum(part.nbytes for part in (*self.slot.keys, *self.slot.values))

    def prefill(self, tokens: Int[Tensor, "B T"], prefix: KV | None = None) -> KV:
        """The keys and values of ``tokens`` read after ``prefix``, which is not repeated."""
        held = prefix.slots if prefix else 0
        with self.reading([Reading(prefix, batch=len(tokens))], room=tokens.shape[1]) as cache:
            self.hidden(tokens, cache=cache)
        return cache.rows_from(held)

    # ---- readings ----

    @contextmanager
    def reading(self, readings: Sequence[Reading], *, room: int = 256) -> Iterator[PrefixCache]:
        """Let each batch row see its own reading.

        Inside: the cache holds every row's prefix, and linear layers add every row's deltas. After: no hook remains;
        the cache stays usable, but without the deltas.
        """
        rows = [row for reading in readings for row in reading.rows()]
        if any(row.prefix.masks for row in rows if row.prefix) and not self.hides_slots:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot hide slots from single heads, as this memory needs it; open it "
                "with Backbone.open, or set its attn_implementation to 'byheart'."
            )
        cache = PrefixCache.of(rows, layers=len(self.layers), dtype=self.dtype, room=room)
        with self.deltas([row.deltas for row in rows]), self.anatomy.as_rounded():
            yield cache

    @cached_property
    def hides_slots(self) -> bool:
        """Whether single heads can be kept from seeing a slot: the model runs on byheart's attention."""
        x = noise(2, self.dim, self.dtype, self.device)
        return hides_slots(lambda cache: self.hidden(embeds=x, cache=cache), self.slot)

    def deltas(self, rows: Sequence[Mapping[str, Delta]]) -> AbstractContextManager[None]:
        """Let linear layers add each batch row's change. Inside: hooks on those layers. After: none."""
        return self.changing(self.changes(rows))

    def changes(self, rows: Sequence[Mapping[str, Delta]]) -> list[Change]:
        """The linear layers that these rows change, each with its forward hook; made once for many passes."""
        paths, converted = sorted({path for row in rows for path in row}), cast(rows, self.dtype)
        return [(self.linear(path), delta_hook([row.get(path) for row in converted])) for path in paths]

    def changing(self, changes: Sequence[Change]) -> AbstractContextManager[None]:
        """Before: the model as it is. Inside: linear layers add ``changes``. After: no hook remains."""
        return hooked(linear.register_forward_hook(hook) for linear, hook in changes)

    @property
    def decoder_path(self) -> str:
        """Where the decoder is in the model, such as ``model``."""
        places: dict[int, str] = {id(module): name for name, module in self.model.named_modules()}
        return places[id(self.decoder)]

    def linear(self, path: str) -> Linear:
        """The linear layer at a module path of the decoder, such as ``layers.29.mlp.up_proj``."""
        try:
            module = self.decoder.get_submodule(path)
        except AttributeError as error:
            raise UsageError(f"The model has no module '{path}'.") from error
        if not isinstance(module, LINEARS):
            raise UsageError(f"The model's module '{path}' is a {type(module).__name__}, not a linear layer.")
        return module

    def linears(self, index: int) -> dict[str, Linear]:
        """Path -> linear layer, for every linear layer of layer ``index``."""
        prefix = f"{self.anatomy.stack}.{index}"
        return {f"{prefix}.{n}": m for n, m in self.layers[index].named_modules() if isinstance(m, LINEARS)}

    def attention_linears(self, index: int) -> list[str]:
        """Paths of the linear layers of layer ``index`` outside its feed-forward block."""
        inside = self.feed_forward_roles(index)
        return [path for path in self.linears(index) if path not in inside]

    @property
    def stop_tokens(self) -> list[int]:
        """Tokens that end an answer, by the model's own generation settings."""
        # A model made by hand may have no generation settings.
        ends: int | list[int] | None = getattr(self.model.generation_config, "eos_token_id", None)
        return [] if ends is None else ends if isinstance(ends, list) else [ends]

    # ---- hidden states between layers ----

    def layer_inputs(self, change: Callable[[int, Tensor], Tensor]) -> AbstractContextManager[None]:
        """Let ``change(index, hidden)`` give each layer its input. Inside: a pre-hook per layer. After: none."""

        def hook(index: int) -> Callable[..., Any]:
            return lambda module, args: (change(index, args[0]), *args[1:])

        return hooked(layer.register_forward_pre_hook(hook(i)) for i, layer in enumerate(self.layers))

    def layer_outputs(self, take: Callable[[int, Tensor], None]) -> AbstractContextManager[None]:
        """Show each layer's output to ``take(index, hidden)``. Inside: a hook per layer. After: none."""

        def hook(index: int) -> Callable[..., Any]:
            return lambda module, args, out: take(index, out)

        return hooked(layer.register_forward_hook(hook(i)) for i, layer in enumerate(self.layers))

    # ---- running a part again ----

    def feed_forward(self, index: int) -> FeedForward:
        """Where layer ``index`` has its feed-forward block. Raises UnsupportedModelError."""
        if index not in self._blocks:
            self._blocks[index] = feed_forward(self.layers[index], *self._sample(index), index=index)
        return self._blocks[index]

    def feed_forward_block(self, index: int) -> nn.Module:
        """The feed-forward block of layer ``index``, beside the attention or after it. Raises UnsupportedModelError."""
        return find_block(self.layers[index], *self._sample(index), index=index)

    def _sample(self, index: int) -> tuple[dict[str, Any], Tensor]:
        """What layer ``index`` is called with to see how it works."""
        return self.anatomy.arguments[index], noise(2, self.dim, self.dtype, self.device)

    def feed_forward_roles(self, index: int) -> dict[str, str]:
        """Path -> ``keys`` or ``values`` for the linear layers of layer ``index``'s feed-forward block.

        Values write to the stream: the block's last linear layer. Keys match its input: all the others.
        """
        block, about = self.feed_forward_block(index), {"dim": self.dim, "dtype": self.dtype, "device": self.device}
        return roles_in(block, self.linears(index), index=index, **about)

    @contextmanager
    def feed_forward_inputs(self, index: int) -> Iterator[list[FeedForwardInput]]:
        """Keep what layer ``index``'s feed-forward block is given. Inside: two hooks, an item per pass. After: none."""
        where = self.feed_forward(index)
        taken: list[FeedForwardInput] = []
        residuals: list[Tensor] = []
        source = where.source.register_forward_pre_hook(lambda module, args: residuals.append(args[0]))
        block = where.block.register_forward_pre_hook(
            lambda module, args: taken.append(FeedForwardInput(args[0], residuals.pop()))
        )
        with hooked((source, block)):
            yield taken

    @contextmanager
    def upper(self, start: int) -> Iterator[list[LayerCheckpoint]]:
        """Keep what is needed to run the layers from ``start`` on again. Inside: a hook per layer. After: none."""
        taken: list[LayerCheckpoint] = []
        arguments: list[dict[str, Any]] = []
        inputs: list[Tensor] = []

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not arguments:
                inputs.append(args[0])
            arguments.append(with_cache(named_arguments(module, args, kwargs), None))
            if len(arguments) == len(self.layers) - start:
                taken.append(LayerCheckpoint(start, inputs.pop(), tuple(arguments)))
                arguments.clear()

        with hooked(layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in self.layers[start:]):
            yield taken

    def resume(self, upper: LayerCheckpoint) -> Float[Tensor, "B T D"]:
        """Final hidden states from the kept input of the upper layers; the lower layers are not run."""
        hidden = upper.hidden
        for layer, arguments in zip(self.layers[upper.start :], upper.arguments, strict=True):
            hidden = layer(hidden, **arguments)
        return self.finish(hidden)

    # ---- identity ----

    @cached_property
    def fingerprint(self) -> str:
        """A name for all that decides what this model computes; see ``model.fingerprint``."""
        return fingerprint_model(self.model)

    @cached_property
    def sampled_fingerprint(self) -> str:
        """The name that byheart 0.2 gave these weights, by samples of them."""
        return sample_fingerprint(dict(self.model.named_parameters()), torch.bfloat16, samples=256)

    def is_called(self, name: str) -> bool:
        """Whether a fingerprint is this model's in some precision, or the one that byheart 0.2 gave it."""
        return without_remainder(name) in (without_remainder(self.fingerprint), self.sampled_fingerprint)
