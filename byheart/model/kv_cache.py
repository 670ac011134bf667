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

from byheart.model.head_masks import attach_mask
from byheart.model.reading import KV, Reading, map_slots

_ROOM = 256
# Columns that no row uses are left out where there are so many, and at least one in so many of all.
_MANY_EMPTY, _WORTH = 64, 4


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, a view of the filled part of a buffer with room after it.

    ``mask`` (B, H, P) says which of the first P slots each head sees, or is None where all heads see all slots.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, ...] = ()
        self.mask: Tensor | None = None

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
        """Append (B, H, T, W) and return all slots, the keys with the mask of what heads see of them."""
        keys, values = self._extend(key_states, value_states)
        return (keys if self.mask is None else attach_mask(keys, self.mask)), values

    def _extend(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
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

    def append(self, keys: Tensor, values: Tensor, mask: Tensor | None, room: int) -> None:
        """Take in slots; the buffer, where it has to grow, gets room for ``room`` more."""
        held = self.get_seq_length()
        if mask is not None:
            earlier = self.whole_mask()
            earlier = mask.new_ones(*mask.shape[:2], held) if earlier is None else earlier
            self.mask = torch.cat([earlier, mask], dim=2)
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
        if self.mask is not None:
            self.mask = without_row(self.mask, row)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` slots; the buffer stays."""
        if tokens_to_remove and self.get_seq_length():
            left = self.get_seq_length() - abs(tokens_to_remove)
            self._set(*(part[:, :, :left] for part in self.past()))
            if self.mask is not None:
                self.mask = self.mask[:, :, :left]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        super().batch_repeat_interleave(repeats)
        if self.mask is not None:
            self.mask = self.mask.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch."""
        super().batch_select_indices(indices)
        if self.mask is not None:
            self.mask = self.mask[indices]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows of the batch, as beam search does."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        if self.mask is not None:
            self.mask = self.mask.index_select(0, beam_idx.to(self.mask.device))

    def whole_mask(self) -> Tensor | None:
        """What each head sees of all slots held (B, H, M), or None where that is all."""
        if self.mask is None:
            return None
        return torch.nn.functional.pad(self.mask, (0, self.get_seq_length() - self.mask.shape[2]), value=True)


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
            if any(prefix.masks for prefix in prefixes):
                masks = [prefix.masks[index] if prefix.masks else None for prefix in prefixes]
                layer.mask = _stacked_masks(masks, [prefix.keys[index] for prefix in prefixes], longest)
        if any(reading.slots != longest for reading in readings):
            held = torch.tensor([reading.slots for reading in readings], device=some.keys[0].device)
            cache.valid = torch.arange(longest, device=held.device) >= longest - held[:, None]
        return cache

    def append(self, kv: KV, *, room: int = _ROOM, start: int = 0) -> None:
        """Take in slots of some layers from ``start`` on, rotated to where they come to stand, with room for more."""
        masks = kv.masks or (None,) * len(kv.keys)
        layers = self._grown()[start : start + len(kv.keys)]
        for layer, keys, values, mask in zip(layers, kv.keys, kv.values, masks, strict=True):
            layer.append(keys, values, mask, room)

    def overwrite(self, layer: int, keys: Tensor, values: Tensor, *, start: int) -> None:
        """Put other slots (B, H, K, W), rotated to where they stand, in the place of a layer's from ``start`` on."""
        for held, new in zip(self._grown()[layer].past(), (keys, values), strict=True):
            held[:, :, start : start + new.shape[2]] = new

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
            self.valid = without_row(self.valid, row)

    def trim(self) -> None:
        """Leave out first columns in which no row has a token, where they are a good part of all."""
        if self.valid is None:
            return
        empty, held = int(self.valid.any(0).long().argmax()), self.valid.shape[1]
        if empty >= _MANY_EMPTY and _WORTH * empty >= held:
            for layer in self._grown():
                keys, values = layer.past()
                layer.hold(keys[:, :, empty:], values[:, :, empty:], _ROOM, keys.dtype)
                layer.mask = None if layer.mask is None else layer.mask[:, :, empty:]
            self.valid = self.valid[:, empty:]
        if bool(self.valid.all()):
            self.valid = None

    def join(self, other: PrefixCache) -> None:
        """Take in the rows of another cache after these; the shorter ones are padded on the left."""
        ours, theirs = self.get_seq_length(), other.get_seq_length()
        longest = max(ours, theirs)
        masks = [cache._mask(held) for cache, held in ((self, ours), (other, theirs))]
        for layer, more in zip(self._grown(), other._grown(), strict=True):
            parts = [layer.past(), more.past()]
            head_masks = [layer.whole_mask(), more.whole_mask()]
            keys, values = (torch.cat([_padded(part, longest) for part in pair]) for pair in zip(*parts, strict=True))
            layer.hold(keys, values, _ROOM, keys.dtype)
            if any(mask is not None for mask in head_masks):
                layer.mask = _stacked_masks(head_masks, [keys for keys, _ in parts], longest)
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

    def release(self) -> KV:
        """All slots, keys as rotated, without a copy: the cache is not to be used after it."""
        masks = [mask for layer in self._grown() if (mask := layer.whole_mask()) is not None]
        keys, values = zip(*(layer.past() for layer in self._grown()), strict=True)
        return KV(keys, values, tuple(masks))

    def rows_from(self, start: int, stop: int | None = None, *, layers: int | None = None) -> KV:
        """Copies of the slots ``start`` to ``stop``, keys as rotated; with masks where some are hidden.

        Args:
            layers: only the first so many.
        """
        some = self._grown()[:layers]
        past = KV(*zip(*(layer.past() for layer in some), strict=True))
        copies = map_slots(lambda part: part[:, :, start:stop].clone(), past)
        masks = [mask[:, :, start:stop].clone() for layer in some if (mask := layer.whole_mask()) is not None]
        return copies if all(map(Tensor.all, masks)) else KV(copies.keys, copies.values, tuple(masks))


def _stacked(rows: Sequence[Tensor], length: int) -> Tensor:
    """Batch rows of different lengths as one tensor, padded with zeros on the left."""
    if len(rows) == 1:
        return rows[0]
    out = rows[0].new_zeros(len(rows), rows[0].shape[1], length, rows[0].shape[3])
    for b, row in enumerate(rows):
        out[b, :, length - row.shape[2] :] = row[0]
    return out


def _stacked_masks(masks: Sequence[Tensor | None], keys: Sequence[Tensor], length: int) -> Tensor:
    """What heads see, (B, H, ``length``), of batch rows of different lengths; rows without a mask see all."""
    whole = [
        key.new_ones(key.shape[:3], dtype=torch.bool) if mask is None else mask
        for mask, key in zip(masks, keys, strict=True)
    ]
    return torch.cat([torch.nn.functional.pad(mask, (length - mask.shape[2], 0), value=True) for mask in whole])


def without_row(part: Tensor, row: int) -> Tensor:
    """A tensor without a row, whose place the last one takes."""
    last = len(part) - 1
    return part[[last if number == row else number for number in range(last)]]


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
