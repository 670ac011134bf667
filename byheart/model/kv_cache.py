"""A key-value cache that starts full of memory and grows in place.

transformers' own dynamic cache copies every slot for every new token; over a long memory that costs more than the
attention. This one writes into room that it keeps free. It is what the model's layers and stock ``generate`` call; it
does not know where its first slots come from.

Dimensions: B batch, H heads, M slots held, T new tokens, W head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from byheart.model.reading import KV, Reading, map_slots

_ROOM = 256
# Columns that no row uses are left out where there are so many, and at least one in so many of all.
_MANY_EMPTY, _WORTH = 64, 4


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, a view of the filled part of a buffer with room after it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, ...] = ()

    def hold(self, keys: Tensor, values: Tensor, room: int, dtype: torch.dtype) -> None:
        """Copy ``keys`` and ``values`` (B, H, M, W) in, with room for ``room`` more slots."""
        held = keys.shape[2]
        self._buffers = ()
        for part in (keys, values):
            buffer = part.new_empty((*part.shape[:2], held + room, part.shape[3]), dtype=dtype)
            buffer[:, :, :held] = part
            self._buffers += (buffer,)
        self._set(*(buffer[:, :, :held] for buffer in self._buffers))

    def _set(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.is_initialized = keys, values, True
        self.dtype, self.device = keys.dtype, keys.device

    def past(self) -> tuple[Tensor, Tensor]:
        """Keys and values held. Raises RuntimeError before the first."""
        if self.keys is None or self.values is None:
            raise RuntimeError("the cache holds nothing yet")
        return self.keys, self.values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, W) and return all slots."""
        new = key_states.shape[2]
        held = self.get_seq_length()
        if not torch.is_grad_enabled() and self._has_room(held + new):
            return self._put(held, key_states, value_states)
        keys, values = self.past() if held else (key_states[:, :, :0], value_states[:, :, :0])
        if torch.is_grad_enabled() and (key_states.requires_grad or keys.requires_grad):
            # Slots that earlier gradients still need must not be overwritten in place.
            self._buffers = ()
            self._set(torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2))
            return self.past()
        self.hold(keys, values, new + _ROOM, key_states.dtype)
        return self._put(held, key_states, value_states)

    def append(self, keys: Tensor, values: Tensor, room: int) -> None:
        """Take in slots; the buffer, where it has to grow, gets room for ``room`` more."""
        held = self.get_seq_length()
        if not self._has_room(held + keys.shape[2]):
            past = self.past() if held else (keys[:, :, :0], values[:, :, :0])
            self.hold(*past, keys.shape[2] + room, keys.dtype)
        self._put(held, keys, values)

    def _has_room(self, total: int) -> bool:
        """Whether the buffer can be written up to ``total`` slots."""
        if not self._buffers or self.keys is None or total > self._buffers[0].shape[2]:
            return False
        buffer = self._buffers[0]
        # Beam search puts reordered copies in place of the views, and inference tensors stay unwritable outside.
        own = self.keys.data_ptr() == buffer.data_ptr()
        return own and (torch.is_inference_mode_enabled() or not buffer.is_inference())

    def _put(self, held: int, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Write new slots into the buffer after ``held`` slots."""
        total = held + key_states.shape[2]
        keys, values = (buffer[:, :, :total] for buffer in self._buffers)
        keys[:, :, held:] = key_states
        values[:, :, held:] = value_states
        self.keys, self.values = keys, values
        return keys, values

    def drop(self, row: int) -> None:
        """Leave out a row of the batch: the last one takes its place."""
        if not self._buffers:
            return
        last, held = self._buffers[0].shape[0] - 1, self.get_seq_length()
        for buffer in self._buffers if row != last else ():
            buffer[row, :, :held] = buffer[last, :, :held]
        self._buffers = tuple(buffer[:last] for buffer in self._buffers)
        self._set(*(buffer[:, :, :held] for buffer in self._buffers))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` slots; the buffer stays."""
        if tokens_to_remove and self.get_seq_length():
            left = self.get_seq_length() - abs(tokens_to_remove)
            self._set(*(part[:, :, :left] for part in self.past()))


class PrefixCache(Cache):
    """A cache of ``layers`` growing layers whose batch rows may hold memories of different lengths.

    Shorter rows are padded on the left; ``valid`` (B, M) says which slots count, or is None where all do.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[GrowingLayer() for _ in range(layers)])
        self.valid: Tensor | None = None

    @classmethod
    def of(cls, readings: Sequence[Reading], *, layers: int, dtype: torch.dtype, room: int = _ROOM) -> PrefixCache:
        """A cache holding the prefixes of ``readings`` (one per batch row), with room for ``room`` new tokens."""
        cache = cls(layers)
        longest = max(reading.slots for reading in readings)
        some = next((reading.prefix for reading in readings if reading.slots), None)
        if some is None:
            return cache
        prefixes = [reading.prefix or some.slice(0, 0) for reading in readings]
        for index, layer in enumerate(cache._grown()):
            keys = _stacked([prefix.keys[index] for prefix in prefixes], longest)
            values = _stacked([prefix.values[index] for prefix in prefixes], longest)
            layer.hold(keys, values, room, dtype)
        if any(reading.slots != longest for reading in readings):
            held = torch.tensor([reading.slots for reading in readings], device=some.keys[0].device)
            cache.valid = torch.arange(longest, device=held.device) >= longest - held[:, None]
        return cache

    def append(self, kv: KV, *, room: int = _ROOM, start: int = 0) -> None:
        """Take in slots of the layers from ``start`` on, rotated to where they come to stand, with room for more."""
        for layer, keys, values in zip(self._grown()[start:], kv.keys, kv.values, strict=True):
            layer.append(keys, values, room)

    def _grown(self) -> list[GrowingLayer]:
        return [layer for layer in self.layers if isinstance(layer, GrowingLayer)]

    def step(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """Announce new tokens, embedded (B, T, D); gives the attention mask and their positions.

        ``mask`` (B, T) is False where a row is padded. The result's mask is (B, M + T), or None where every slot
        counts; a row's first token sits at its own prefix length.
        """
        batch, new = x.shape[:2]
        held = self.get_seq_length()
        if self.valid is None and (mask is None or bool(mask.all())):
            return None, torch.arange(held, held + new, device=x.device).expand(batch, new)
        everything = torch.ones(batch, held + new, dtype=torch.bool, device=x.device)
        past = self.valid if self.valid is not None else everything[:, :held]
        self.valid = torch.cat([past, everything[:, held:] if mask is None else mask.bool()], dim=1)
        positions = (self.valid.cumsum(1) - 1).clamp(min=0)
        return self.valid, positions[:, held:]

    def drop(self, row: int) -> None:
        """Leave out a row of the batch, which then costs nothing; the last row takes its place."""
        for layer in self._grown():
            layer.drop(row)
        if self.valid is not None:
            last = len(self.valid) - 1
            self.valid = self.valid[[last if number == row else number for number in range(last)]]

    def trim(self) -> None:
        """Leave out first columns in which no row has a token, where they are a good part of all."""
        if self.valid is None:
            return
        empty, held = int(self.valid.any(0).long().argmax()), self.valid.shape[1]
        if empty >= _MANY_EMPTY and _WORTH * empty >= held:
            for layer in self._grown():
                keys, values = layer.past()
                layer.hold(keys[:, :, empty:], values[:, :, empty:], _ROOM, keys.dtype)
            self.valid = self.valid[:, empty:]
        if bool(self.valid.all()):
            self.valid = None

    def join(self, other: PrefixCache) -> None:
        """Take in the rows of another cache after these; the shorter ones are padded on the left."""
        ours, theirs = self.get_seq_length(), other.get_seq_length()
        longest = max(ours, theirs)
        masks = [cache._mask(held) for cache, held in ((self, ours), (other, theirs))]
        for layer, more in zip(self._grown(), other._grown(), strict=True):
            keys, values = (
                torch.cat([_padded(part, longest) for part in pair])
                for pair in zip(layer.past(), more.past(), strict=True)
            )
            layer.hold(keys, values, _ROOM, keys.dtype)
        valid = torch.cat([torch.nn.functional.pad(mask, (longest - mask.shape[1], 0)) for mask in masks])
        self.valid = None if bool(valid.all()) else valid

    def _mask(self, held: int) -> Tensor:
        """Which of ``held`` columns count, for each row."""
        if self.valid is not None:
            return self.valid
        keys, _ = self._grown()[0].past()
        return torch.ones(keys.shape[0], held, dtype=torch.bool, device=keys.device)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens of every row."""
        super().crop(tokens_to_remove)
        if self.valid is not None and tokens_to_remove:
            self.valid = self.valid[:, : -abs(tokens_to_remove)]

    def rows_from(self, start: int, stop: int | None = None) -> KV:
        """Copies of the slots ``start`` to ``stop``, keys as rotated."""
        past = KV(*zip(*(layer.past() for layer in self._grown()), strict=True))
        return map_slots(lambda part: part[:, :, start:stop].clone(), past)


def _stacked(rows: Sequence[Tensor], length: int) -> Tensor:
    """Batch rows of different lengths as one tensor, padded with zeros on the left."""
    if len(rows) == 1:
        return rows[0]
    out = rows[0].new_zeros(len(rows), rows[0].shape[1], length, rows[0].shape[3])
    for b, row in enumerate(rows):
        out[b, :, length - row.shape[2] :] = row[0]
    return out


def _padded(part: Tensor, length: int) -> Tensor:
    """Keys or values (B, H, M, W) padded with zeros on the left."""
    return torch.nn.functional.pad(part, (0, 0, length - part.shape[2], 0))


class Tapped(Exception):
    """Raised by a tap once a layer has shown its keys and values; what the layer would do next is not needed."""


class KeyValueTap(PrefixCache):
    """A cache that takes the first keys and values it is shown and stops the layer there."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.taken: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take and stop."""
        self.taken = (key_states, value_states)
        raise Tapped
