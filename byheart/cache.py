"""A key-value cache that starts full of memory and grows in place.

transformers' own dynamic cache copies every row for every new token; over a long memory that costs more than the
attention. This one writes into room it has left over. It is what the model's layers and stock ``generate`` call;
it does not know where its first rows come from.

Dimensions: B batch, H heads, M rows held, T new tokens, W head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from byheart.reading import KV, Reading

_ROOM = 256


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, a view on the filled part of a buffer with room behind it."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def hold(self, keys: Tensor, values: Tensor, room: int) -> None:
        """Copy ``keys`` and ``values`` (B, H, M, W) in, with room for ``room`` more rows."""
        held = keys.shape[2]
        shape = (*keys.shape[:2], held + room, keys.shape[3])
        buffers = keys.new_empty(shape), values.new_empty((*shape[:3], values.shape[3]))
        buffers[0][:, :, :held] = keys
        buffers[1][:, :, :held] = values
        self._buffers = buffers
        self._show(held)

    def lend(self, keys: Tensor, values: Tensor) -> None:
        """Hold ``keys`` and ``values`` without a copy; the first new row moves them."""
        self._buffers = None
        self.keys, self.values, self.is_initialized = keys, values, True
        self.dtype, self.device = keys.dtype, keys.device

    def _show(self, held: int) -> None:
        if self._buffers is None:
            self.keys, self.values = self.keys[:, :, :held], self.values[:, :, :held]
            return
        keys, values = self._buffers
        self.keys, self.values, self.is_initialized = keys[:, :, :held], values[:, :, :held], True
        self.dtype, self.device = keys.dtype, keys.device

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, W) and return all rows."""
        held, new = self.get_seq_length(), key_states.shape[2]
        if torch.is_grad_enabled() and (key_states.requires_grad or (held and self.keys.requires_grad)):
            # Rows that earlier layers' gradients still need must not be overwritten in place.
            past = (self.keys, self.values) if held else (key_states[:, :, :0], value_states[:, :, :0])
            self.lend(torch.cat([past[0], key_states], dim=2), torch.cat([past[1], value_states], dim=2))
            return self.keys, self.values
        if self._buffers is None or self._buffers[0].shape[2] < held + new:
            past = (self.keys, self.values) if held else (key_states[:, :, :0], value_states[:, :, :0])
            self.hold(past[0], past[1], new + _ROOM)
        if self._buffers is not None:
            self._buffers[0][:, :, held : held + new] = key_states
            self._buffers[1][:, :, held : held + new] = value_states
        self._show(held + new)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` rows; the buffer stays."""
        if tokens_to_remove and self.is_initialized:
            self._show(self.get_seq_length() - abs(tokens_to_remove))


class PrefixCache(Cache):
    """A cache of ``layers`` growing layers whose batch rows may hold memories of different lengths.

    Shorter rows are padded on the left; ``valid`` (B, M) says which rows count, or is None where all do.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[GrowingLayer() for _ in range(layers)])
        self.valid: Tensor | None = None

    @classmethod
    def of(cls, readings: Sequence[Reading], *, layers: int, room: int = _ROOM) -> PrefixCache:
        """A cache holding the prefixes of ``readings`` (one a batch row), with room for ``room`` new tokens."""
        cache = cls(layers)
        prefixes = [reading.prefix for reading in readings]
        longest = max(reading.length for reading in readings)
        some = next((prefix for prefix in prefixes if prefix and prefix.length), None)
        if some is None:
            return cache
        for index in range(layers):
            cache._layer(index).hold(
                _stacked([p and p.keys[index] for p in prefixes], some.keys[index], longest),
                _stacked([p and p.values[index] for p in prefixes], some.values[index], longest),
                room,
            )
        if any(reading.length != longest for reading in readings):
            held = torch.tensor([reading.length for reading in readings], device=some.keys[0].device)
            cache.valid = torch.arange(longest, device=held.device) >= longest - held[:, None]
        return cache

    def _layer(self, index: int) -> GrowingLayer:
        layer = self.layers[index]
        if not isinstance(layer, GrowingLayer):
            raise TypeError(f"layer {index} of the cache is a {type(layer).__name__}")
        return layer

    def step(self, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        """Announce new tokens, a mask (B, T) of those that count; gives the attention mask and their positions.

        The mask is (B, M + T), or None where every row counts; a row's first token sits at its own prefix length.
        """
        batch, new = tokens.shape
        held = self.get_seq_length()
        if self.valid is None and bool(tokens.all()):
            return None, torch.arange(held, held + new, device=tokens.device).expand(batch, new)
        past = self.valid if self.valid is not None else tokens.new_ones(batch, held, dtype=torch.bool)
        self.valid = torch.cat([past, tokens.bool()], dim=1)
        positions = (self.valid.cumsum(1) - 1).clamp(min=0)
        return self.valid, positions[:, held:]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens of every row."""
        super().crop(tokens_to_remove)
        if self.valid is not None and tokens_to_remove:
            self.valid = self.valid[:, : -abs(tokens_to_remove)]

    def rows_from(self, start: int, stop: int | None = None) -> KV:
        """Copies of the rows ``start`` to ``stop``, keys as rotated."""
        return KV(
            tuple(layer.keys[:, :, start:stop].clone() for layer in self.layers),
            tuple(layer.values[:, :, start:stop].clone() for layer in self.layers),
        )


def _stacked(rows: Sequence[Tensor | None], like: Tensor, length: int) -> Tensor:
    """Batch rows of different lengths as one tensor, padded with zeros on the left."""
    if len(rows) == 1 and rows[0] is not None:
        return rows[0]
    out = like.new_zeros(len(rows), like.shape[1], length, like.shape[3])
    for b, row in enumerate(rows):
        if row is not None and row.shape[2]:
            out[b, :, length - row.shape[2] :] = row[0]
    return out


class Tapped(Exception):
    """Raised by a tap once a layer has shown its keys and values; what the layer would do next is not needed."""


class KeyValueTap(PrefixCache):
    """A cache that takes the first keys and values it is shown and stops the layer there."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.taken: tuple[Tensor, Tensor] | None = None

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take and stop."""
        self.taken = (key_states, value_states)
        raise Tapped
