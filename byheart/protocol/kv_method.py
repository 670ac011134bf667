"""What every method is that keeps chosen slots of a text's own keys and values.

The model reads a piece of text after the slots that were kept before; of both, the method says what stays. Keys are
kept un-rotated, as of position 0, and take the position of their place in the memory: text of any length is read at
positions the model knows, and rounding does not build up over writes. Nothing here knows why a slot is kept.

State: `keys.l`, `values.l` (B, H, M, W) per layer l, keys as of position 0; coded where ``bits`` is not 16, see
``slot_coding``.

Dimensions: B batch, H key-value heads, M slots, C past and new slots, W head width.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.model.backbone import Backbone
from byheart.model.observed_attention import observing
from byheart.model.reading import KV, Reading
from byheart.protocol.kv_slots import map_slots, rotate_to_slots
from byheart.protocol.method import Method
from byheart.protocol.quantise import require_bits
from byheart.protocol.segments import split_segments
from byheart.protocol.slot_coding import SlotCoding
from byheart.protocol.state import State, kv_slots


@dataclass(frozen=True)
class NewKV(KV):
    """The slots of a piece that was just read, un-rotated.

    ``attention``: what each slot, past ones first, was given by the last ``observed`` tokens of the piece, per layer;
    layers that do not run on byheart's attention are missing.
    """

    attention: tuple[Float[Tensor, "B H C"], ...] = ()


class SlotMethod(Method):
    """A method whose state is slots and nothing else: none at first, and none of another shape than the model makes."""

    bits: int = 16
    """What each number of a slot takes: 16 as the model makes it, 8 or 4 coded when it is written, once."""

    def __init__(self, backbone: Backbone, *, bits: int = 16) -> None:
        Method.__init__(self, backbone)
        require_bits(bits)
        self.bits = bits

    @cached_property
    def coding(self) -> SlotCoding:
        """How slots stand in the state."""
        return SlotCoding(self.backbone, self.bits)

    def init(self) -> State:
        """No slots."""
        return {}

    def prefix_slots(self, state: State) -> int:
        """Those of the state; nothing is decoded."""
        return kv_slots(state)

    def template(self, state: State, *, written: bool) -> State:
        """Slots within capacity, as the model makes them or as they are coded."""
        return self.coding.template(state, most=self.capacity) if written else {}

    def require_values(self, state: State) -> None:
        """Raise ValueError where a code's range is none."""
        self.coding.require_values(state)


class KVMethod(SlotMethod):
    """A method that keeps slots of the text's own keys and values; a subclass says which, by ``keep``."""

    chunk_tokens: int
    """How many tokens the model reads at once; slots are chosen after each such piece."""
    observed: int = 0
    """How many last tokens of a piece have their attention observed for ``keep``; 0 observes nothing."""
    in_float32: ClassVar[bool] = False
    """Whether ``keep`` gets new slots in float32, so that a mean of them is rounded once."""

    @abc.abstractmethod
    def keep(self, past: KV | None, new: NewKV) -> KV:
        """The slots that stay, in order, once a piece was read.

        Args:
            past: what was kept before, None before the first piece; un-rotated, as is what is returned. Its slots
                may have codes, which ``slice``, ``gather`` and ``append`` keep; numbers made anew are coded anew.
            new: the piece's own slots. A method that observes no attention may take it as a plain KV.
        """

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens. Raises InputError for an empty text."""
        return split_segments(segment, longest=self.chunk_tokens)

    @torch.no_grad()
    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` after the kept slots, piece by piece, and keep what ``keep`` says."""
        for piece in self.pieces(segment):
            past = self.coding.to_kv(state)
            state = self.coding.to_state(self.keep(past, self._prefill(piece, past)))
        return state

    def read(self, state: State) -> Reading:
        """The slots at positions 0 to M - 1."""
        kept = self.coding.to_kv(state)
        return Reading(rotate_to_slots(self.backbone, kept), batch=kept.batch) if kept else Reading()

    def _prefill(self, piece: Tensor, past: KV | None) -> NewKV:
        """The slots of ``piece`` as the model reads it after ``past``."""
        with observing(self.observed) if self.observed else nullcontext() as seen:
            new = self.backbone.prefill(piece, rotate_to_slots(self.backbone, past) if past else None)
        if self.in_float32:
            new = map_slots(Tensor.float, new)
        start = past.slots if past else 0
        new = self.backbone.rotate(new, -torch.arange(start, start + new.slots, device=new.keys[0].device))
        return NewKV(new.keys, new.values, attention=tuple(seen.layers) if seen else ())
