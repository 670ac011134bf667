"""Keys and values of a few compression tokens stand for each segment (CCM, Kim et al. 2024, arXiv 2312.03414).

A segment is read once, followed by compression tokens; their keys and values in every layer are what is kept, the
segment's own are dropped. They join the memory at its end (`concat`, section 3.2) or are averaged into it (`mean`, the
paper's CCM-merge). The model stays frozen: only the compression tokens' embeddings and a LoRA that is active at their
positions are learned (section 3.1).

What a position sees, recurrent (a segment of three tokens, two compression tokens):

    memory | text  | compression
     1 1   | 1 0 0 | 0 0
     1 1   | 1 1 0 | 0 0
     1 1   | 1 1 1 | 0 0
     1 1   | 1 1 1 | 1 0
     1 1   | 1 1 1 | 1 1

Not recurrent: the memory's columns are 0 while a segment is compressed; only a question sees them.

Positions are the paper's "skip" scheme: text is counted through all segments, compression tokens stand at the
positions that follow their segment's last token and are not counted. Keys are kept rotated to these absolute
positions; a reader's positions differ by one constant, so rounding does not build up over writes. A mean is kept in
float32.

With ``slots``, a text streams through them (section 4.3): a window of it stands uncompressed after the compressed
slots, see ``slot_stream``. The model reads on after all of these, and a segment that leaves the window is compressed
from the slots that it has there, without being read again. Positions are then those of places among the slots.

State: `keys.l`, `values.l` (B, H, S + M, W) per layer, keys rotated to absolute positions, sink first; with ``slots``
(B, H, S + M + T, W), keys as of position 0; `tokens` (B,), text tokens read; `segments` (B,), segments compressed.
Keys and values are coded where ``bits`` is not 16.

Dimensions: B batch, H heads, M memory slots, S sink slots (0 or 1), T tokens, W head width.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from byheart.errors import UsageError, require_not_negative, require_one_of, require_positive
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.lora import LoRA
from byheart.model.reading import KV, Reading
from byheart.model.segment_attention import Together, together
from byheart.protocol.episode import Batch
from byheart.protocol.episode_loss import episode_loss
from byheart.protocol.kv_slots import map_slots
from byheart.protocol.method import Method
from byheart.protocol.objective import TARGETS_ONLY, Objective
from byheart.protocol.quantise import require_bits
from byheart.protocol.segments import split_segments
from byheart.protocol.size import Size, slot_bytes
from byheart.protocol.slot_coding import SlotCoding, move_slots
from byheart.protocol.slot_stream import SlotStream
from byheart.protocol.state import State, kv_slots


class CompressedKV(Method):
    """Keeps ``tokens`` slots per segment, or ``tokens`` slots in all.

    Args:
        tokens: compression tokens per segment.
        merge: ``concat`` puts new slots after the old ones, ``mean`` averages over all segments.
        recurrent: whether a segment sees the memory while it is compressed.
        sink: keep the very first token's slot too.
        first_slot: put one learned slot in front of everything. It takes the attention that a model gives to the first
            token of a text, whatever it is, which compressed slots lack; it is learned once and in no state.
        segment_tokens: longer text is cut into segments of this many tokens; 0 takes any length as one segment.
        rank, alpha: of the LoRA.
        conditional: whether the LoRA is active at compression tokens alone; else it is active at every token of writes
            and questions, as in the published baseline.
        linears: which layers it updates: the ``attention``'s, as published, or ``all``.
        bits: of each number of the keys and values; 8 or 4 code a slot once, when it is written. While the method is
            trained they are exact. A mean changes with every segment, and has 16.
        slots: in all, through which a text streams: compressed segments, and after them its last tokens as they are.
            Published are 160, with ``tokens=2`` and ``sink``; 0 compresses all text and keeps all that it became.
        compressed_slots: of ``slots``, at most; then the oldest are dropped. A mean has always ``tokens``.
        keep_text: keep the text's own slots too, so that compression costs nothing: the published control.
    """

    name = "compressed-kv"
    # Learned parts belong to one number of slots per segment, so the defaults fit or do not.
    size = Size(lambda backbone, texts, options: _state_bytes(backbone, texts, options))

    def __init__(
        self,
        backbone: Backbone,
        *,
        tokens: int = 4,
        merge: str = "concat",
        recurrent: bool = True,
        sink: bool = False,
        first_slot: bool = False,
        segment_tokens: int = 64,
        rank: int = 8,
        alpha: float = 16.0,
        linears: str = "attention",
        conditional: bool = True,
        bits: int = 16,
        slots: int = 0,
        compressed_slots: int = 8,
        keep_text: bool = False,
    ) -> None:
        Method.__init__(self, backbone)
        require_bits(bits)
        require_positive(tokens=tokens, rank=rank)
        if tokens > (known := backbone.embedding.num_embeddings):
            raise UsageError(f"tokens must be at most {known}, the model's vocabulary; it is {tokens}.")
        require_not_negative(segment_tokens=segment_tokens, slots=slots)
        require_one_of("merge", merge, ("concat", "mean"))
        require_one_of("linears", linears, ("attention", "all"))
        if merge == "mean" and bits != 16:
            raise UsageError(f"bits must be 16 where merge is 'mean', which changes with every segment; it is {bits}.")
        self.tokens, self.merge, self.recurrent, self.sink = tokens, merge, recurrent, sink
        self.segment_tokens, self.rank, self.alpha, self.linears = segment_tokens, rank, alpha, linears
        self.first_slot, self.conditional, self.bits = first_slot, conditional, bits
        if keep_text and (merge == "mean" or sink or slots):
            raise UsageError("keep_text keeps every slot of the text: leave out merge='mean', sink and slots.")
        self.slots, self.compressed_slots, self.keep_text = slots, compressed_slots, keep_text
        self.capacity = slots or (tokens + sink + first_slot if merge == "mean" else None)
        if slots:
            if not recurrent:
                raise UsageError(
                    "slots needs recurrent=True: text that streams has seen what was compressed before it."
                )
            self.stream.require_room()
        # One start for each compression token: the mean of every ``tokens``-th embedding, near the mean of them all.
        means = [backbone.embedding.weight[k::tokens].float().mean(0) for k in reversed(range(tokens))]
        self.embeddings = nn.Parameter(torch.stack(means))
        updated = backbone.attention_linears if linears == "attention" else backbone.linears
        paths = [p for index in range(len(backbone.layers)) for p in updated(index)]
        self.lora = LoRA(backbone, paths, rank=rank, alpha=alpha)
        # (L, 2, H, 1, W): keys and values; it stands at position 0, and the text from 1 on.
        self.first = nn.Parameter(_first_slot(backbone)) if first_slot else None

    @property
    def coding(self) -> SlotCoding:
        """How slots stand in the state. Codes have no gradients, so that training has none."""
        return SlotCoding(self.backbone, 16 if self.training else self.bits)

    @cached_property
    def stream(self) -> SlotStream:
        """How ``slots`` are shared out."""
        return SlotStream.of(self.options())

    def init(self) -> State:
        """No slots."""
        zero = torch.zeros(1, dtype=torch.long, device=self.backbone.device)
        return {"tokens": zero, "segments": zero.clone()}

    def template(self, state: State, *, written: bool) -> State:
        """Counts, and slots once something was written; those of a mean are in float32."""
        kv = self.coding.template(state) if written else {}
        mean = self.merge == "mean"
        return {**self.init(), **{name: part.float() if mean else part for name, part in kv.items()}}

    def require_values(self, state: State) -> None:
        """Every segment has tokens, and as many slots as the method gives it; codes have ranges."""
        self.coding.require_values(state)
        held, tokens, segments = kv_slots(state), int(state["tokens"]), int(state["segments"])
        slots = self.tokens * (min(1, segments) if self.merge == "mean" else segments) + (self.sink and segments > 0)
        slots += tokens * self.keep_text
        if self.slots:
            slots = self.stream.held(tokens, segments) if segments == self.stream.segments(tokens) else -1
        if not segments <= tokens or slots != held:
            raise ValueError(f"{segments} segments of {tokens} tokens have {slots} slots, not {held}")

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Segments of at most ``segment_tokens``."""
        return split_segments(segment, longest=self.segment_tokens or max(1, segment.shape[1]))

    def batch_key(self, state: State, segment: Tensor) -> Hashable:
        """Shapes; where text streams also how much was read, which says what is where among the slots."""
        return Method.batch_key(self, state, segment), int(state["tokens"]) if self.slots else 0

    def reads_at_once(self, state: State, segment: Tensor) -> int:
        """Up to a whole segment; where text streams, as much as there are slots for."""
        if self.slots:
            return min(segment.shape[1], self.stream.most - kv_slots(state))
        return Method.reads_at_once(self, state, segment)

    def slots_after(self, state: State, segment: Tensor) -> int:
        """More by those of each segment; a mean has always as many."""
        if self.slots:
            return min(self.slots, self.first_slot + kv_slots(state) + segment.shape[1])
        if self.capacity is not None:
            return self.capacity
        held = kv_slots(state) or int(self.sink)
        text = segment.shape[1] * self.keep_text
        return held + self.first_slot + text + self.tokens * sum(1 for _ in self.pieces(segment))

    def write(self, state: State, segment: Tensor) -> State:
        """Compress ``segment``, piece by piece; or let it stream through the slots."""
        add = self._let_stream if self.slots else self._compress
        for piece in self.pieces(segment):
            state = add(state, piece)
        return state

    def read(self, state: State) -> Reading:
        """Sink and memory, rotated so that the next token stands right after them."""
        batch = state["tokens"].shape[0]
        deltas = {} if self.conditional else self.lora.deltas(batch)
        kept = self.coding.to_kv(state)
        prefix = self._in_places(kept, batch) if self.slots else self._to_reader(kept, state["tokens"])
        return Reading(prefix, deltas, batch=batch)

    def _gate(self, length: int) -> slice | None:
        """The positions of a segment of ``length`` tokens and its marks at which the LoRA is active."""
        return slice(length, length + self.tokens) if self.conditional else None

    def _to_reader(self, kept: KV | None, tokens: Tensor) -> KV | None:
        """Slots rotated for a reader whose next token, at absolute position ``tokens``, stands right after them."""
        kv = self._after_first(kept, len(tokens))
        if kv is None:
            return None
        shift = kv.slots - int(self.first_slot) - tokens
        return self.backbone.rotate(kv, shift[:, None].expand(-1, kv.slots))

    def _after_first(self, kept: KV | None, batch: int) -> KV | None:
        """Slots at absolute positions, with the learned first slot before them."""
        if self.first is None:
            return kept
        dtype = self.backbone.dtype if kept is None else kept.keys[0].dtype
        parts = self.first.to(dtype)[:, :, None].expand(-1, -1, batch, -1, -1, -1).unbind(1)
        first = KV(*(tuple(part.unbind(0)) for part in parts))
        return first if kept is None else first.append(kept)

    def _compress(self, state: State, piece: Tensor) -> State:
        batch, length = piece.shape
        kept, tokens = self.coding.to_kv(state), state["tokens"]
        seen = kept if self.recurrent or kept is None else (kept.slice(0, 1) if self.sink else None)
        prefix = self._to_reader(seen, tokens)
        start = prefix.slots if prefix else 0
        marks = self.embeddings.to(self.backbone.dtype).expand(batch, -1, -1)
        embeds = torch.cat([self.backbone.embed(piece), marks], dim=1)
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and self.training),
            self.backbone.reading([Reading(prefix, batch=batch)], room=embeds.shape[1]) as cache,
            self.lora.active(self.backbone, gate=self._gate(length)),
        ):
            self.backbone.hidden(embeds=embeds, cache=cache)
        shift = tokens + int(self.first_slot) - start
        new = self._to_absolute(cache.rows_from(start if self.keep_text else start + length), shift)
        sink = None
        if self.sink:
            sink = kept.slice(0, 1) if kept else self._to_absolute(cache.rows_from(start, start + 1), shift)
        memory = kept.slice(1) if kept and self.sink else kept
        merged = self._merge(memory, new, state["segments"])
        return {
            **self.coding.to_state(sink.append(merged) if sink else merged),
            "tokens": tokens + length,
            "segments": state["segments"] + 1,
        }

    def _let_stream(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` after the slots, as much as there is room for, and compress the oldest text where it is."""
        while segment.shape[1]:
            room, kept, read = self.reads_at_once(state, segment), self.coding.to_kv(state), int(state["tokens"][0])
            piece, segment = segment[:, :room], segment[:, room:]
            new = self._read_after(kept, self.backbone.embed(piece), is_text=True)
            kept = move_slots(KV.append, kept, new) if kept else new
            segments = self.stream.segments(read + room)
            for earlier in range(int(state["segments"][0]), segments):
                kept = self._compress_oldest(kept, earlier)
            counts = {"tokens": state["tokens"] + room, "segments": torch.full_like(state["segments"], segments)}
            state = {**self.coding.to_state(kept), **counts}
        return state

    def _compress_oldest(self, kept: KV, segments: int) -> KV:
        """Slots whose oldest segment of text has become compressed ones, after so many ``segments`` before."""
        marks = self.embeddings.to(self.backbone.dtype).expand(kept.batch, -1, -1)
        new = self._read_after(kept.slice(0, self.stream.end_of_oldest(segments)), marks, is_text=False)
        counted = torch.full((kept.batch,), segments, device=marks.device)
        return self.stream.replace_oldest(kept, segments, lambda memory: self._merge(memory, new, counted))

    def _in_places(self, kept: KV | None, batch: int) -> KV | None:
        """Slots as of position 0, rotated to their places after the learned first one."""
        if kept is not None:
            places = torch.arange(kept.slots, device=kept.keys[0].device) + int(self.first_slot)
            kept = self.backbone.rotate(kept, places)
        return self._after_first(kept, batch)

    def _read_after(self, kept: KV | None, embeds: Tensor, *, is_text: bool) -> KV:
        """The slots of text, or of compression tokens, that stand right after those that are kept, as of position 0."""
        prefix = self._in_places(kept, len(embeds))
        start = prefix.slots if prefix else 0
        lora = nullcontext() if is_text and self.conditional else self.lora.active(self.backbone)
        with (
            torch.no_grad(),
            self.backbone.reading([Reading(prefix, batch=len(embeds))], room=embeds.shape[1]) as cache,
            lora,
        ):
            self.backbone.hidden(embeds=embeds, cache=cache)
        new = cache.rows_from(start)
        if self.merge == "mean":
            new = map_slots(Tensor.float, new)
        return self.backbone.rotate(new, -torch.arange(start, start + new.slots, device=embeds.device))

    def write_together(self, segments: Tensor, mask: Tensor) -> tuple[State, Tensor]:
        """Write all segments in one forward pass: the state as ``write`` would leave it, and the text's hidden states.

        Args:
            segments: token ids (B, S, T), shorter ones padded on the left; each is one segment, whatever its length.
            mask: (B, S, T), False at padding.

        Hidden states are (B, S, T, D), each as the model had it while it read that segment. Equal to the recurrence
        (section 3.3), without its sequence of passes.
        """
        texts, rows, length = segments.shape
        marks = self.embeddings.to(self.backbone.dtype).expand(texts * rows, -1, -1)
        embeds = torch.cat([self.backbone.embed(segments.flatten(0, 1)), marks], dim=1)
        real = torch.cat([mask, mask.new_ones(texts, rows, self.tokens)], dim=2)
        lengths = mask.sum(2)
        starts = lengths.cumsum(1) - lengths
        places = starts[..., None] + (real.cumsum(2) - 1).clamp(min=0)
        front = int(self.first_slot)
        first = mask[:, 0].long().argmax(1) + front if self.sink else None
        before = self._to_reader(None, mask.new_zeros(texts * rows, dtype=torch.long))
        with (
            self.backbone.reading([Reading(before, batch=texts * rows)], room=0) as cache,
            together(Together(rows, self.tokens, self.merge == "mean", self.recurrent, first)),
            self.lora.active(self.backbone, gate=self._gate(length)),
        ):
            flat = (part.flatten(0, 1) for part in (real, places + front))
            hidden = self.backbone.hidden(embeds=embeds, cache=cache, mask=next(flat), positions=next(flat))
        state = {**self.coding.to_state(self._collect(cache, texts, first)), "tokens": lengths.sum(1)}
        state["segments"] = torch.full_like(state["tokens"], rows)
        return state, hidden[:, :length].reshape(texts, rows, length, -1)

    def loss(self, batch: Batch, objective: Objective = TARGETS_ONLY) -> Tensor:
        """As every memory's, but all segments are read in one pass, unless writes are checkpointed one by one.

        Raises UsageError.
        """
        if not batch.segments.shape[1]:
            raise UsageError("compressed-kv learns from what is written; these episodes have no segments.")
        if self.slots:
            raise UsageError("A method is trained without slots; give them where text is read.")
        if objective.checkpoint_writes or self.keep_text:
            return Method.loss(self, batch, objective)
        if objective.every_segment and not self.recurrent:
            raise UsageError("every_segment needs recurrent=True: without it, segments do not see the memory.")
        state, text = self.write_together(batch.segments, batch.mask)
        with self.backbone.reading([self.read(state)], room=batch.target.shape[1]) as cache:
            hidden = torch.cat([text.flatten(1, 2), self.backbone.hidden(batch.target, cache=cache)], dim=1)
        return episode_loss(self.backbone, hidden, batch, objective)

    def _collect(self, cache: PrefixCache, texts: int, first: Tensor | None) -> KV:
        """What many segments read side by side leave: their marks, joined or averaged, after the sink."""

        def merge(part: Tensor) -> Tensor:
            segments = part.reshape(texts, -1, *part.shape[1:])
            return segments.float().mean(1) if self.merge == "mean" else segments.transpose(1, 2).flatten(2, 3)

        kept = map_slots(merge, cache.rows_from(-self.tokens))
        if first is None:
            return kept
        every = cache.rows_from(0)
        index = torch.arange(texts, device=first.device) * (every.batch // texts)
        return map_slots(lambda part: part[index, :, first][:, :, None], every).append(kept)

    def _to_absolute(self, kv: KV, steps: Tensor) -> KV:
        """Slots at their positions in the text, from a pass in which they stood ``steps`` positions earlier."""
        if self.merge == "mean":
            kv = map_slots(Tensor.float, kv)
        return self.backbone.rotate(kv, steps[:, None].expand(-1, kv.slots))

    def _merge(self, memory: KV | None, new: KV, segments: Tensor) -> KV:
        if memory is None:
            return new
        if self.merge == "concat":
            return memory.append(new)
        share = 1.0 / (segments + 1)[:, None, None, None]
        return map_slots(lambda old, fresh: old + (fresh - old) * share, memory, new)


def _state_bytes(backbone: Backbone, texts: Sequence[int], options: Mapping[str, Any]) -> int:
    """Bytes of the slots of all segments, or of those of one mean, which are in float32, and of two counts."""
    is_mean, longest = options["merge"] == "mean", options["segment_tokens"]
    segments = sum(math.ceil(tokens / longest) if longest else 1 for tokens in texts)
    slots = int(options["sink"] + options["tokens"] * (1 if is_mean else segments) + options["keep_text"] * sum(texts))
    if options["slots"]:
        stream, tokens = SlotStream.of(options), sum(texts)
        slots = stream.held(tokens, stream.segments(tokens))
    in_float32 = backbone.slot_bytes * torch.float32.itemsize // backbone.slot.keys[0].itemsize
    return slots * (in_float32 if is_mean else slot_bytes(backbone, options)) + 16


def _first_slot(backbone: Backbone) -> Tensor:
    """The keys and values of the token that texts begin with, at position 0; (L, 2, H, 1, W)."""
    with torch.no_grad():
        kv = backbone.prefill(torch.tensor([[backbone.first_token]], device=backbone.device))
    return torch.stack([torch.stack([k[0], v[0]]).float() for k, v in zip(kv.keys, kv.values, strict=True)])
