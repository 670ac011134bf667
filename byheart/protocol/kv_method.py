"""What every method is that keeps chosen slots of a text's own keys and values.

The model reads a piece of text after the slots that were kept before; of both, the method says what stays. Keys are
kept un-rotated, as of position 0, and take the position of their place in the memory: text of any length is read at
positions the model knows, and rounding does not build up over writes. Nothing here knows why a slot is kept.

What a chat template puts around the text is not kept, see ``slot_frame``.

State: `keys.l`, `values.l` (B, H, M, W) per layer l, keys as of position 0; coded where ``bits`` is not 16, see
``slot_coding``; marks of the template, see ``slot_frame``.

Dimensions: B batch, H key-value heads, M slots, C past and new slots, W head width.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.model.backbone import Backbone
from byheart.model.observed_attention import Observed, observing
from byheart.model.reading import KV, Reading
from byheart.model.slices import Slices, prefill_in_slices, run_through
from byheart.protocol.kv_slots import concat, map_slots
from byheart.protocol.method import Method, with_defaults
from byheart.protocol.quantise import require_bits
from byheart.protocol.segments import require_known, split_segments
from byheart.protocol.slot_coding import SlotCoding
from byheart.protocol.slot_frame import SlotFrame
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
    opening: Sequence[int] = ()
    """Tokens that the chat template puts before the first text; they are not kept."""
    receipt: Sequence[int] = ()
    """Tokens that the chat template puts after each text; those after the last one are not kept."""

    def __init__(
        self, backbone: Backbone, *, bits: int = 16, opening: Sequence[int] = (), receipt: Sequence[int] = ()
    ) -> None:
        Method.__init__(self, backbone)
        require_bits(bits)
        require_known(backbone, opening=opening, receipt=receipt)
        self.bits, self.opening, self.receipt = bits, list(opening), list(receipt)

    @cached_property
    def frame(self) -> SlotFrame:
        """What the chat template puts around the slots of the state."""
        return SlotFrame(self.backbone, self.opening, self.receipt)

    @cached_property
    def coding(self) -> SlotCoding:
        """How slots stand in the state."""
        return SlotCoding(self.backbone, self.bits)

    def init(self) -> State:
        """No slots."""
        return {}

    def prefix_slots(self, state: State) -> int:
        """Those of the state and of the chat template; nothing is decoded."""
        return kv_slots(state) + self.frame.slots(state)

    def slots_after(self, state: State, segment: Tensor) -> int:
        """One more per token, up to ``capacity``."""
        slots = self.prefix_slots(state) + segment.shape[1]
        return slots if self.capacity is None else min(self.capacity, slots)

    def batch_key(self, state: State, segment: Int[Tensor, "1 _"]) -> Hashable:
        """Shapes, and what stands around the text."""
        return Method.batch_key(self, state, segment), self.frame.key(state, segment)

    def template(self, state: State, *, written: bool) -> State:
        """Slots within capacity, as the model makes them or as they are coded."""
        if not written:
            return {}
        most = None if self.capacity is None else self.capacity - self.frame.most
        return {**self.coding.template(state, most=most), **self.frame.template(state)}

    def require_values(self, state: State) -> None:
        """Raise ValueError where a code's range is none, or the template does not fit the model's positions."""
        self.coding.require_values(state)
        if self.frame.slots(state) and self.prefix_slots(state) > self.backbone.positions:
            raise ValueError("it has more slots than the model has positions")

    def known_options(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """As every method's; a file that does not name the template has it among its slots, and can be read here."""
        own = {name: value for name, value in self.options().items() if name in ("opening", "receipt")}
        return {**with_defaults(type(self), stored), **own, **stored}


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
        """Parts of at most ``chunk_tokens`` tokens of text, with the template's. Raises InputError for no text."""
        return self.frame.pieces(segment, longest=self.chunk_tokens)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` after the kept slots, piece by piece, and keep what ``keep`` says."""
        return run_through(self.write_in_slices(state, segment, longest=self.backbone.positions))

    @torch.no_grad()
    def write_in_slices(self, state: State, segment: Tensor, *, longest: int) -> Slices[State]:
        """As ``write``, with pauses while a piece is read."""
        for piece in self.pieces(segment):
            framed, past = self.frame.split(state, piece), self.coding.to_kv(state)
            new = yield from self._prefill(framed.tokens, framed.front, past, longest)
            kept = self.keep(past, new)
            state = {**self.coding.to_state(kept), **framed.marks}
        return state

    @torch.no_grad()
    def read(self, state: State) -> Reading:
        """The slots at positions from 0 on, the chat template's among them."""
        kept = self.coding.to_plain(state)
        if kept is None:
            return Reading()
        front = self.frame.front(state, kept.batch)
        placed = self._place(kept, front.slots if front else 0)
        return Reading(self.frame.around(state, placed), batch=kept.batch)

    def _place(self, kept: KV, start: int) -> KV:
        """Kept slots at positions from ``start`` on."""
        return self.backbone.rotate(kept, torch.arange(start, start + kept.slots, device=kept.keys[0].device))

    def _prefill(self, tokens: Tensor, front: KV | None, past: KV | None, longest: int) -> Slices[NewKV]:
        """The slots of ``tokens`` as the model reads them after ``front`` and ``past``."""
        ahead = front.slots if front else 0
        prefix = concat(front, self._place(past, ahead)) if past else front
        start = prefix.slots if prefix else 0
        seen: Observed | None = None

        @contextmanager
        def observed() -> Iterator[None]:
            nonlocal seen
            with observing(self.observed) if self.observed else nullcontext() as seen:
                yield

        # The last slice has all tokens that are observed.
        slices = list(split_segments(tokens, longest=longest, shortest=self.observed or 1))
        new = yield from prefill_in_slices(self.backbone, slices, prefix, inside=observed)
        if self.in_float32:
            new = map_slots(Tensor.float, new)
        new = self.backbone.rotate(new, -torch.arange(start, start + new.slots, device=new.keys[0].device))
        attention = tuple(layer[:, :, ahead:] for layer in seen.layers) if seen else ()
        return NewKV(new.keys, new.values, attention=attention)
