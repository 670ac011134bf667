"""The slots that the model attends to when it repeats the text (KVzip, Kim et al. 2025, arXiv 2505.23416), untrained.

What a model needs to say a text again is what it needs for any question about it. So the text is read, and read once
more behind a request to repeat it. Each slot of each key-value head has as its score the most attention that any token
of the repetition gives it in any query head. The highest scores of all layers and heads stay: a head may keep all of
its slots or none. Slots stay at their positions, and heads do not see those that were dropped.

    [opening | text | receipt] "Repeat the previous context exactly." [text]
               scored slots                                            observed queries

What stands around the text is kept as tokens and read exactly (``protocol.chat_frame``). A text that is added is read
after what was kept, and scored by itself.

State: `keys`, `values` (B, S, W) of the kept slots, text by text, of each by token, then layer, then head; keys rotated
to their positions. `kept` (B, T, C) a bit for each layer and head of each token: whether its slot is kept. `runs`
(B, N, 2) per written text: what stands around it, and its tokens. `first` (B, E) tokens that begin a text without the
template.

Dimensions: B batch, T tokens of all texts, P layers times heads, C bytes for P bits, S kept slots, W head width,
M slots that are seen, N texts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from byheart.errors import InputError, UnsupportedModelError, UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.observed_attention import observing, require_observed
from byheart.model.reading import KV, Reading
from byheart.protocol.chat_frame import SINKS, ChatFrame, keeps_first, require_kind
from byheart.protocol.method import Method
from byheart.protocol.segments import SHORTER, require_known, require_positions, split_segments
from byheart.protocol.size import Size
from byheart.protocol.state import State
from byheart.protocol.template import length, zeros

_MOST_SIZES = 1_000_000
# The last tokens before a part of a text, by which it is asked for.
_CUE = 8


class Run(NamedTuple):
    """A written text: what is read exactly around it, and its tokens."""

    around: int
    tokens: int


class RepeatScore(Method):
    """Keeps a share of the slots of a text, those that repeating it attends to most.

    Args:
        share: how much of a text's slots are kept, counted over all layers and heads.
        repeat_tokens: how many tokens of the text are repeated at once.
        chunk_tokens: how many tokens the model reads at once; bounds the room a write takes, changes nothing.
        opening, receipt: the tokens that the chat template puts before the first text and after each.
        repeat: the tokens that ask for the text again, after its receipt.
        repeat_from, repeat_answer: those before and after the last tokens of what was repeated, which ask for more.
    """

    name = "repeat-score"
    text_format = "turn"
    # Counted without the chat template, which takes no bytes.
    size = Size(
        lambda backbone, texts, options: _state_bytes(backbone, texts, options["share"]),
        lambda tokens: range(1, _MOST_SIZES + 1),
        lambda size: {"share": size / _MOST_SIZES},
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        share: float = 0.3,
        repeat_tokens: int = 2048,
        chunk_tokens: int = 1024,
        opening: Sequence[int] = (),
        receipt: Sequence[int] = (),
        repeat: Sequence[int] = (),
        repeat_from: Sequence[int] = (),
        repeat_answer: Sequence[int] = (),
    ) -> None:
        Method.__init__(self, backbone)
        require_positive(repeat_tokens=repeat_tokens, chunk_tokens=chunk_tokens)
        require_known(backbone, opening=opening, receipt=receipt)
        require_known(backbone, repeat=repeat, repeat_from=repeat_from, repeat_answer=repeat_answer)
        if not 0 < share <= 1:
            raise UsageError(f"share must be above 0 and at most 1; it is {share}.")
        self.share, self.repeat_tokens, self.chunk_tokens = share, repeat_tokens, chunk_tokens
        self.opening, self.receipt = list(opening), list(receipt)
        self.repeat, self.repeat_from, self.repeat_answer = list(repeat), list(repeat_from), list(repeat_answer)
        self.frame = ChatFrame(self.opening, self.receipt)
        self._pairs = _count_pairs(backbone)

    def init(self) -> State:
        """No slots."""
        return {}

    def slots_after(self, state: State, segment: Int[Tensor, "B T"]) -> int:
        """One more per token: dropped slots keep their positions."""
        return self.prefix_slots(state) + segment.shape[1]

    def prefix_slots(self, state: State) -> int:
        """How many slots the prefix has; nothing is read."""
        return sum(
            run.tokens + len(self.frame.before(run.around, state["first"])[0]) + len(self.frame.after(run.around))
            for run in runs_of(state)
        )

    def batch_key(self, state: State, segment: Int[Tensor, "1 _"]) -> Hashable:
        """Shapes, and what stands around the texts."""
        framed = self.frame.key(segment, first=not state)
        return Method.batch_key(self, state, segment), framed, tuple(runs_of(state))

    @torch.no_grad()
    def write(self, state: State, segment: Int[Tensor, "B T"]) -> State:
        """Read ``segment`` after what was kept, repeat it, and keep the slots of the highest scores.

        Raises InputError where the model has no positions for that, and UnsupportedModelError.
        """
        before, after = self.frame.split(segment, first=not state)
        read, text = segment[:, : segment.shape[1] - after], segment[:, before : segment.shape[1] - after]
        past = self.read(state).prefix
        start = (past.slots if past else 0) + before
        self._require_room(start + text.shape[1], after)
        room = read.shape[1] + min(text.shape[1], self.repeat_tokens)
        with self.backbone.reading([Reading(past, batch=len(segment))], room=room) as cache:
            for piece in split_segments(read, longest=self.chunk_tokens):
                self.backbone.hidden(piece, cache=cache)
            keys, values = (torch.cat(parts, dim=1).transpose(1, 2) for parts in _both(cache.rows_from(start)))
            kept = self._choose(cache, text, start)
        run = Run(self.frame.kind(segment, before, after), text.shape[1])
        first = segment[:, : before if keeps_first(run.around) else 0]
        added = {
            "keys": keys[kept].view(len(segment), -1, keys.shape[3]),
            "values": values[kept].view(len(segment), -1, values.shape[3]),
            "kept": pack(kept),
            "runs": torch.tensor([[run]], dtype=torch.int32, device=keys.device).expand(len(segment), -1, -1),
        }
        if not state:
            return {**added, "first": first.to(keys.device, torch.int32)}
        return {**state, **{name: torch.cat([state[name], part], dim=1) for name, part in added.items()}}

    def template(self, state: State, *, written: bool) -> State:
        """As many slots as the texts have by the share."""
        if not written:
            return {}
        batch = 1
        count = length(state, "runs", 1, most=1 << 20)
        is_like = "runs" in state and state["runs"].dtype == torch.int32
        known = is_like and tuple(state["runs"].shape) == (batch, count, 2)
        texts = [max(0, run.tokens) for run in runs_of(state)] if known else [1]
        kept = sum(slots_of(tokens, self._pairs, self.share) for tokens in texts)
        keys, values = (part[0][:, 0].expand(-1, kept, -1) for part in _both(self.backbone.slot))
        return {
            "keys": keys,
            "values": values,
            "kept": zeros(batch, sum(texts), _packed(self._pairs), dtype=torch.uint8),
            "runs": zeros(batch, count, 2, dtype=torch.int32),
            "first": zeros(batch, length(state, "first", 1, most=SINKS, least=0), dtype=torch.int32),
        }

    def require_values(self, state: State) -> None:
        """Raise ValueError where texts, slots and tokens do not belong together."""
        runs = runs_of(state)
        for place, run in enumerate(runs):
            require_kind(run.around, place, run.tokens)
        if not state:
            return
        if bool((state["first"] >= self.backbone.embedding.num_embeddings).any()):
            raise ValueError("it begins with a token that the model does not have")
        if bool(state["first"].numel()) != keeps_first(runs[0].around):
            raise ValueError("its first tokens are not those of its first text")
        if self.prefix_slots(state) > self.backbone.positions:
            raise ValueError("it has more slots than the model has positions")
        bits = unpack(state["kept"], _packed(self._pairs) * 8)
        if bool(bits[:, :, self._pairs :].any()):
            raise ValueError("it keeps slots of layers or heads that the model does not have")
        for part, run in zip(bits.split_with_sizes([run.tokens for run in runs], dim=1), runs, strict=True):
            if int(part.sum()) != slots_of(run.tokens, self._pairs, self.share):
                raise ValueError(f"it keeps {int(part.sum())} slots of a text, which is not its share")

    @torch.no_grad()
    def read(self, state: State) -> Reading:
        """All tokens at their positions; heads see of the texts what was kept, and all of what stands around them."""
        if not state:
            return Reading()
        batch, total, token, slot = len(state["first"]), self.prefix_slots(state), 0, 0
        with self.backbone.reading([Reading(batch=batch)], room=total) as cache:
            for run in runs_of(state):
                count = slots_of(run.tokens, self._pairs, self.share)
                self._read_exactly(cache, self.frame.before(run.around, state["first"]))
                if run.tokens:
                    kept = unpack(state["kept"][:, token : token + run.tokens], self._pairs)
                    keys, values = (state[name][:, slot : slot + count] for name in ("keys", "values"))
                    cache.append(self._place(keys, values, kept), room=total - cache.get_seq_length())
                self._read_exactly(cache, [self.frame.after(run.around)] * batch)
                token, slot = token + run.tokens, slot + count
        return Reading(cache.rows_from(0), batch=batch)

    def _read_exactly(self, cache: PrefixCache, tokens: Sequence[Sequence[int]]) -> None:
        if tokens[0]:
            self.backbone.hidden(torch.tensor(tokens, device=self.backbone.device), cache=cache)

    def _place(self, keys: Float[Tensor, "B S W"], values: Float[Tensor, "B S W"], kept: Bool[Tensor, "B T P"]) -> KV:
        """The kept slots at their places, nothing at the others, and the masks that hide those."""
        heads = [part.shape[1] for part in self.backbone.slot.keys]

        def by_layer(part: Tensor) -> tuple[Tensor, ...]:
            return part.transpose(1, 2).split_with_sizes(heads, dim=1)

        placed = []
        for part in (keys, values):
            whole = part.new_zeros(*kept.shape, part.shape[2])
            whole[kept] = part.flatten(0, 1)
            placed.append(by_layer(whole))
        return KV(placed[0], placed[1], () if bool(kept.all()) else by_layer(kept))

    def _choose(self, cache: PrefixCache, text: Int[Tensor, "B T"], start: int) -> Bool[Tensor, "B T P"]:
        """Which slots of ``text``, which the cache holds from ``start`` on, are kept."""
        shape, count = (*text.shape, self._pairs), slots_of(text.shape[1], self._pairs, self.share)
        if count == text.shape[1] * self._pairs:
            return torch.ones(shape, dtype=torch.bool, device=self.backbone.device)
        best = self.scores(cache, text, start).transpose(1, 2).flatten(1).topk(count).indices
        kept = torch.zeros(len(text), math.prod(shape[1:]), dtype=torch.bool, device=best.device)
        return kept.scatter(1, best, True).view(shape)

    def scores(self, cache: PrefixCache, text: Int[Tensor, "B T"], start: int) -> Float[Tensor, "B P T"]:
        """The most attention that each slot of ``text``, held from ``start`` on, gets from a token that repeats it.

        Raises UnsupportedModelError.
        """
        held, found = cache.get_seq_length(), []
        longest = min(self.repeat_tokens, self.backbone.positions - held - self._asked)
        for asked, part in self._requests(text.to(self.backbone.device), longest):
            # The last token that asks is the one that predicts the first of the text.
            quiet = max(0, asked.shape[1] - 1)
            for piece in split_segments(asked[:, :quiet], longest=self.chunk_tokens) if quiet else ():
                self.backbone.hidden(piece, cache=cache)
            for piece in split_segments(torch.cat([asked[:, quiet:], part], dim=1), longest=self.chunk_tokens):
                with observing(piece.shape[1], greatest=True) as seen:
                    self.backbone.hidden(piece, cache=cache)
                require_observed(seen.layers, len(self.backbone.layers), name=self.name)
                found.append(torch.cat([layer[:, :, start : start + text.shape[1]] for layer in seen.layers], dim=1))
                found = [torch.stack(found).amax(0)]
            cache.crop(held - cache.get_seq_length())
        return found[0]

    @property
    def _asked(self) -> int:
        """How many tokens ask for a part of a text, at most."""
        more = len(self.repeat_from) + _CUE + len(self.repeat_answer)
        return len(self.receipt) + max(len(self.repeat), more)

    def _require_room(self, held: int, after: int) -> None:
        """Raise InputError where a text that ends at position ``held`` cannot be kept, or not be repeated."""
        require_positions(self.backbone, held + after, SHORTER)
        if self.share < 1 and held + self._asked >= self.backbone.positions:
            raise InputError(
                f"The text has {held} tokens in all, and the model reads at most {self.backbone.positions}, which "
                f"leaves too few to ask for it again as {self.name} does; {SHORTER}."
            )

    def _requests(self, text: Int[Tensor, "B T"], longest: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What asks for each part of ``text`` (B, _), and the part (B, _), of at most ``longest`` tokens."""
        whole, rest = [*self.receipt, *self.repeat], [*self.receipt, *self.repeat_from]

        def rows(tokens: Sequence[int]) -> Tensor:
            return text.new_tensor(tokens, dtype=torch.long).expand(len(text), -1)

        stop = 0
        for part in split_segments(text, longest=longest):
            cue = [rows(rest), text[:, max(0, stop - _CUE) : stop], rows(self.repeat_answer)]
            yield torch.cat(cue if stop else [rows(whole)], dim=1), part
            stop += part.shape[1]


def runs_of(state: State) -> list[Run]:
    """The texts of a state, as written; all rows of a batch have the same."""
    return [Run(*run) for run in state["runs"][0].tolist()] if state else []


def slots_of(tokens: int, pairs: int, share: float) -> int:
    """How many slots of a text are kept, counted over ``pairs`` of a layer and a head."""
    return max(1, int(share * tokens * pairs)) if tokens else 0


def pack(bits: Bool[Tensor, "B T P"]) -> UInt8[Tensor, "B T C"]:
    """Eight bits a byte, the first as the least."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[2] % 8)).to(torch.uint8)
    eight = padded.view(*bits.shape[:2], -1, 8)
    return torch.sum(eight << torch.arange(8, dtype=torch.uint8, device=bits.device), 3, dtype=torch.uint8)


def unpack(packed: UInt8[Tensor, "B T C"], count: int) -> Bool[Tensor, "B T P"]:
    """The first ``count`` bits."""
    bits = packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.flatten(2)[:, :, :count].bool()


def _both(kv: KV) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return kv.keys, kv.values


def _packed(pairs: int) -> int:
    """Bytes of so many bits."""
    return -(-pairs // 8)


def _count_pairs(backbone: Backbone) -> int:
    """How many pairs of a layer and a head there are. Raises UnsupportedModelError where their widths differ."""
    for parts in (backbone.slot.keys, backbone.slot.values):
        if len(widths := {part.shape[3] for part in parts}) > 1:
            raise UnsupportedModelError(
                f"The model's layers have heads of different widths ({', '.join(map(str, sorted(widths)))}), which "
                f"{RepeatScore.name} cannot keep together; use another method (attention-score, window, full)."
            )
    return sum(part.shape[1] for part in backbone.slot.keys)


def _state_bytes(backbone: Backbone, texts: Sequence[int], share: float) -> int:
    """Bytes of the state of texts: slots, bits, two numbers per text, and room for the first tokens of bare text."""
    pairs = _count_pairs(backbone)
    slots = sum(slots_of(tokens, pairs, share) for tokens in texts)
    return slots * (backbone.slot_bytes // pairs) + sum(texts) * _packed(pairs) + 8 * len(texts) + 4 * SINKS
