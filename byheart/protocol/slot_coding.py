"""How slots stand in a state: as the model makes them, or coded in 8 or 4 bits a number.

A slot that is coded is coded once. Whoever chooses slots sees them decoded, with their codes beside them; what is
chosen takes its codes along, and only slots that have none are coded. So what was kept is not coded again however
often more is written. Nothing here knows which slots a method keeps.

State: `keys.l`, `values.l` (B, H, M, W) per layer; or, with 8 or 4 bits, `keys.l`, `values.l` (B, H, M, N) bytes and
`key_ranges.l`, `value_ranges.l` (B, H, M, 2G), see ``quantise``.

Dimensions: B batch, H key-value heads, M slots, K slots that are kept, W head width, N bytes, G groups of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from byheart.model.backbone import Backbone
from byheart.model.reading import KV, map_slots
from byheart.protocol.kv_slots import kv_to_state, state_to_kv
from byheart.protocol.quantise import Quantised, dequantise, quantise
from byheart.protocol.state import State
from byheart.protocol.template import length

_RANGES = ("key_ranges", "value_ranges")


@dataclass(frozen=True, kw_only=True)
class CodedKV(KV):
    """Slots decoded, and their codes, which go where the slots go; slots that are appended are coded."""

    codes: KV
    ranges: KV
    bits: int

    @property
    def plain(self) -> KV:
        """The slots without their codes."""
        return KV(self.keys, self.values)

    def slice(self, start: int, stop: int | None = None) -> KV:
        """The slots from ``start`` to ``stop``, as views."""
        return move_slots(lambda kv: kv.slice(start, stop), self)

    def gather(self, indices: Sequence[Int[Tensor, "B H K"]]) -> KV:
        """The slots at the indices of each layer and head."""
        return move_slots(lambda kv: kv.gather(indices), self)

    def append(self, other: KV) -> KV:
        """These slots, then those of ``other``."""
        return move_slots(KV.append, self, other)


def encode_slots(kv: KV, *, bits: int) -> CodedKV:
    """Slots with their codes: those that they have, else new ones."""
    if isinstance(kv, CodedKV):
        return kv
    parts = [[quantise(numbers, bits=bits) for numbers in part] for part in (kv.keys, kv.values)]
    codes, ranges = (KV(*(tuple(code[end] for code in part) for part in parts)) for end in (0, 1))
    return CodedKV(kv.keys, kv.values, codes=codes, ranges=ranges, bits=bits)


def move_slots(move: Callable[..., KV], *kvs: KV) -> KV:
    """``move`` of slots, which chooses and orders them, and where some are coded, of the codes of all alike.

    Args:
        move: of as many KVs as are given; it is called with numbers, with codes and with ranges.
    """
    bits = next((kv.bits for kv in kvs if isinstance(kv, CodedKV)), None)
    if bits is None:
        return move(*kvs)
    coded = [encode_slots(kv, bits=bits) for kv in kvs]
    plain = move(*(kv.plain for kv in coded))
    codes, ranges = move(*(kv.codes for kv in coded)), move(*(kv.ranges for kv in coded))
    return CodedKV(plain.keys, plain.values, codes=codes, ranges=ranges, bits=bits)


@dataclass(frozen=True)
class SlotCoding:
    """What becomes of slots in the state of a method that keeps ``bits`` a number; with 16, nothing."""

    backbone: Backbone
    bits: int

    def to_state(self, kv: KV) -> dict[str, Tensor]:
        """Slots as tensors of a state; those that have codes keep them."""
        if self.bits == 16:
            return kv_to_state(kv)
        coded = encode_slots(kv, bits=self.bits)
        return {**kv_to_state(coded.codes), **kv_to_state(coded.ranges, names=_RANGES)}

    def to_kv(self, state: State) -> KV | None:
        """The slots of a state, with their codes if it holds codes; None where it has none."""
        if self.bits == 16:
            return state_to_kv(state)
        codes, ranges = state_to_kv(state), state_to_kv(state, names=_RANGES)
        if codes is None or ranges is None:
            return None
        kv = map_slots(self._decode, codes, ranges, self.backbone.slot)
        return CodedKV(kv.keys, kv.values, codes=codes, ranges=ranges, bits=self.bits)

    def to_plain(self, state: State) -> KV | None:
        """The slots of a state, for a model to read; None where it has none."""
        kv = self.to_kv(state)
        return KV(kv.keys, kv.values) if kv else None

    def _decode(self, codes: Tensor, ranges: Tensor, like: Tensor) -> Tensor:
        return dequantise(Quantised(codes, ranges), bits=self.bits, width=like.shape[3], dtype=like.dtype)

    def template(self, state: State, *, most: int | None = None) -> dict[str, Tensor]:
        """As many slots as a state has, as they stand in one; at most ``most``, or the model's positions."""
        return self.slots(length(state, "keys.0", 2, most=most or self.backbone.positions))

    def slots(self, slots: int) -> dict[str, Tensor]:
        """So many slots as they stand in a state, all of them empty."""
        one = self.to_state(self.backbone.slot)
        return {name: torch.zeros_like(part).expand(-1, -1, slots, -1) for name, part in one.items()}

    def require_values(self, state: State) -> None:
        """Raise ValueError, with the tensor's name, where a range ends before it begins."""
        for name, ends in sorted(state.items()):
            if name.startswith(_RANGES):
                low, high = ends.chunk(2, dim=-1)
                if bool((low > high).any()):
                    raise ValueError(f"tensor '{name}' holds a range that ends before it begins")

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot in a state: keys and values in all layers."""
        return sum(tensor.nbytes for tensor in self.to_state(self.backbone.slot).values())
