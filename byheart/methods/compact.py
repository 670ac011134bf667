"""The text's own keys and values, all of them, in a small share of their bytes: what most memories should be.

Nothing is left out: every slot is coded (``protocol.codec``), with as many bits as bear on what the model predicts from
it, but those of the first layers, which are run again on the text's tokens. The text is read once. What stands around
it, the chat template and the first tokens, is kept as tokens and read exactly (``protocol.chat_frame``). A text that is
added is coded by itself, so that earlier codes stay as they were.

State: `codes` (1, N) bytes, one code after another; `runs` (1, S, 3) per written piece: what is read exactly around it
(see ``ChatFrame``), its coded tokens, its bytes; `first` (1, E) tokens that begin a text without the template.

Dimensions: B batch, S pieces, T tokens, M slots.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from byheart.errors import UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.lower_layers import input_of, run_lower
from byheart.model.reading import KV, Reading, map_slots
from byheart.model.slices import Slices, prefill_in_slices, run_aside, run_through
from byheart.protocol.chat_frame import SINKS, ChatFrame, keeps_first, require_kind
from byheart.protocol.codec import shelf
from byheart.protocol.codec.codec import LEAST_BYTES, Codec
from byheart.protocol.method import Method
from byheart.protocol.segments import SHORTER, require_known, require_positions
from byheart.protocol.size import Size
from byheart.protocol.slot_frame import framed_pieces
from byheart.protocol.state import State, unstack
from byheart.protocol.template import length, zeros

MOST_TIMES = 128
_CHUNK = 2048
# Seconds between looks at whether a text is coded.
_PAUSE = 0.002
KEPT_BYTES = 1 << 29
"""What was read lately is kept up to this, so that memories that are written to in turn are not decoded again."""
# ``times`` is chosen in hundredths, so that a number of bytes is met closely where it is small.
_PARTS = 100


class Run(NamedTuple):
    """A written piece: what is read exactly around its text, tokens of the text, bytes of their code."""

    around: int
    tokens: int
    bytes: int


class Compact(Method):
    """Keeps every key and value of a text, coded in so many times fewer bytes.

    Args:
        times: how many times fewer bytes than the keys and values themselves.
        chunk_tokens: how many tokens are read, and coded, at once.
        opening, receipt: the tokens that the chat template puts before the first text and after each.
    """

    name = "compact"
    text_format = "turn"
    needs_codec = True
    # Counted without the chat template, which takes no bytes.
    size = Size(
        lambda backbone, texts, options: _state_bytes(backbone, texts, options),
        lambda tokens: range(MOST_TIMES * _PARTS, 2 * _PARTS - 1, -1),
        lambda parts: {"times": parts / _PARTS if parts % _PARTS else parts // _PARTS},
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        times: float = 30,
        chunk_tokens: int = _CHUNK,
        opening: Sequence[int] = (),
        receipt: Sequence[int] = (),
    ) -> None:
        Method.__init__(self, backbone)
        require_positive(chunk_tokens=chunk_tokens)
        require_known(backbone, opening=opening, receipt=receipt)
        if not 2 <= times <= MOST_TIMES:
            raise UsageError(f"times must be from 2 to {MOST_TIMES}; it is {times}.")
        self.times, self.chunk_tokens = times, chunk_tokens
        self.opening, self.receipt = list(opening), list(receipt)
        self.frame = ChatFrame(self.opening, self.receipt)
        self._memos: list[tuple[State, KV]] = []
        self._random = random.Random(0)
        self._opening: tuple[Sequence[int], KV] | None = None

    @cached_property
    def codec(self) -> Codec:
        """What codes this model's slots. Raises UsageError where there is none yet."""
        return shelf.require(self.backbone)

    def use_codec(self, made: str) -> None:
        """Code with an earlier codec of the model, where it is here."""
        earlier = shelf.find_made(self.backbone, made) if made else None
        if earlier is not None:
            self.codec = earlier

    @property
    def fingerprint(self) -> str:
        """The codec's: another one cannot read the codes."""
        return self.codec.fingerprint

    @property
    def is_untrained(self) -> bool:
        """A codec is learned."""
        return False

    def init(self) -> State:
        """No codes."""
        return {}

    def slots_after(self, state: State, segment: Int[Tensor, "B T"]) -> int:
        """One more per token."""
        return self.prefix_slots(state) + segment.shape[1]

    def prefix_slots(self, state: State) -> int:
        """How many slots the prefix has; nothing is decoded."""
        return sum(run.tokens + len(self._before(run, state)) + len(self._after(run)) for run in runs_of(state))

    def reread_tokens(self, state: State) -> float:
        """All tokens of the text, in the lower layers; the first ones of a text without the template, in all."""
        share = self.codec.start / len(self.backbone.layers)
        return share * sum(run.tokens for run in runs_of(state)) + (state["first"].shape[1] if state else 0)

    def pieces(self, segment: Int[Tensor, "B T"]) -> Iterator[Int[Tensor, "B t"]]:
        """Parts of at most ``chunk_tokens`` tokens of text; the template stays with its own. Raises InputError."""
        return framed_pieces(segment, *self.frame.split(segment), longest=self.chunk_tokens)

    def batch_key(self, state: State, segment: Int[Tensor, "1 _"]) -> Hashable:
        """Shapes, and what stands around the text."""
        framed = self.frame.key(segment, first=not state)
        return Method.batch_key(self, state, segment), framed, tuple(runs_of(state))

    def write(self, state: State, segment: Int[Tensor, "B T"]) -> State:
        """Read ``segment`` after what was kept, and code its slots. Raises InputError past the model's positions."""
        return run_through(self.write_in_slices(state, segment, longest=self.backbone.positions))

    @torch.no_grad()
    def write_in_slices(self, state: State, segment: Int[Tensor, "B T"], *, longest: int) -> Slices[State]:
        """As ``write``, with pauses while a piece is read and while it is coded."""
        require_positions(self.backbone, self.slots_after(state, segment), SHORTER)
        for piece in self.pieces(segment):
            state = yield from self._write_piece(state, piece, longest)
        return state

    def apart(self) -> Compact:
        """The same method, whose memory of what was read lately is its own from here on."""
        twin = copy.copy(self)
        twin._memos = list(self._memos)
        return twin

    def template(self, state: State, *, written: bool) -> State:
        """Codes of as many bytes as the runs say, which are told from the tokens."""
        if not written:
            return {}
        batch = 1
        runs = length(state, "runs", 1, most=1 << 20)
        shape = state["runs"].shape if "runs" in state and state["runs"].dtype == torch.int32 else ()
        size = max(0, int(state["runs"][0, :, 2].sum())) if tuple(shape) == (batch, runs, 3) else 1
        first = length(state, "first", 1, most=SINKS, least=0)
        return {
            "codes": zeros(batch, size, dtype=torch.uint8),
            "runs": zeros(batch, runs, 3, dtype=torch.int32),
            "first": zeros(batch, first, dtype=torch.int32),
        }

    def require_values(self, state: State) -> None:
        """Raise ValueError where runs, codes and tokens do not belong together."""
        for place, run in enumerate(runs_of(state)):
            require_kind(run.around, place, run.tokens)
            if run.bytes != nbytes(self.backbone, run.tokens, self.times):
                raise ValueError(f"run {place} has {run.bytes} bytes, which is not what its tokens take")
        if state and bool(state["first"].shape[1]) != keeps_first(runs_of(state)[0].around):
            raise ValueError("its first tokens do not fit its first run")
        if "first" in state and bool((state["first"] >= self.backbone.embedding.num_embeddings).any()):
            raise ValueError("it begins with a token that the model does not have")
        if self.prefix_slots(state) > self.backbone.positions:
            raise ValueError("it has more slots than the model has positions")
        for place, (run, code) in enumerate(zip(runs_of(state), self._codes(state), strict=True)):
            if code and self.codec.header(code)[0] != run.tokens:
                raise ValueError(f"the code of run {place} has another number of tokens")

    def read(self, state: State) -> Reading:
        """All slots, decoded. Raises CorruptStateError for a code that was changed."""
        return run_through(self._read_in_slices(state, self.backbone.positions))

    def prepare(self, state: State, *, longest: int) -> Slices[None]:
        """Decode all slots, which are then kept as those of a state that was read last."""
        yield from self._read_in_slices(state, longest)

    @torch.no_grad()
    def _read_in_slices(self, state: State, longest: int) -> Slices[Reading]:
        if not state:
            return Reading()
        rows = []
        for row in [state] if len(state["runs"]) == 1 else unstack(state):
            rows.append((yield from self._read_row(row, longest)))
        return Reading(
            rows[0] if len(rows) == 1 else map_slots(lambda *parts: torch.cat(parts), *rows), batch=len(rows)
        )

    def _write_piece(self, state: State, piece: Int[Tensor, "B t"], longest: int) -> Slices[State]:
        before, after = self.frame.split(piece, first=not state)
        around = self.frame.kind(piece, before, after)
        text = piece[:, before : piece.shape[1] - after]
        run = torch.tensor([[[around, text.shape[1], nbytes(self.backbone, text.shape[1], self.times)]]])
        first = piece[:, : before if keeps_first(around) else 0].to("cpu", torch.int32)
        tokens = piece[:, : piece.shape[1] - after]
        added = {
            "codes": (yield from self._encode(state, tokens, before, int(run[0, 0, 2]), longest)),
            "runs": run.to(torch.int32).expand(len(piece), -1, -1),
        }
        if not state:
            return {**added, "first": first}
        return {**state, **{name: torch.cat([state[name].cpu(), part], dim=1) for name, part in added.items()}}

    def _encode(
        self, state: State, tokens: Int[Tensor, "B t"], before: int, size: int, longest: int
    ) -> Slices[UInt8[Tensor, "B N"]]:
        """The codes (B, N) of the slots of ``tokens``, but for the first ``before``, as read after ``state``."""
        if tokens.shape[1] == before:
            return torch.zeros(len(tokens), 0, dtype=torch.uint8)
        past = (yield from self._read_in_slices(state, longest)).prefix
        taken: list[list[Tensor]] = []

        @contextmanager
        def taking() -> Iterator[None]:
            with input_of(self.backbone, self.codec.start) as hidden:
                taken.append(hidden)
                yield

        slices, start = torch.split(tokens, longest, dim=1), past.slots if past else 0
        kv = yield from prefill_in_slices(self.backbone, slices, past, inside=taking)
        kv = self.backbone.rotate(kv, -torch.arange(start, start + kv.slots, device=kv.keys[0].device)).slice(before)
        hidden = torch.cat([each[0] for each in taken], dim=1)
        codes = []
        for row in zip(kv.rows(), hidden[:, before:], tokens[:, before:], strict=True):
            # Coding takes as long as reading did, and needs no part of the model.
            codes.append((yield from run_aside(partial(self.codec.encode, *row, size))))
        return torch.stack([torch.frombuffer(bytearray(code), dtype=torch.uint8) for code in codes])

    def _read_row(self, state: State, longest: int) -> Slices[KV]:
        """The prefix of one session, of which what was read before is not decoded again."""
        known, done = self._take_known(state)
        runs, codes = runs_of(state), list(self._codes(state))
        if known is not None and done == len(runs):
            return self._keep(state, known)
        total = self.prefix_slots(state)
        with self.backbone.reading([Reading()]) as cache:
            if known is not None:
                cache.append(known, room=total - known.slots)
            for run, code in list(zip(runs, codes, strict=True))[done:]:
                before = self._before(run, state)
                if before:
                    cache.append(self._opened(before), room=total - len(before))
                if run.tokens:
                    room = total - cache.get_seq_length() - run.tokens
                    yield from self._read_code(cache, before, code, room, longest)
                self._read_exactly(cache, self._after(run))
        return self._keep(state, cache.release())

    def _keep(self, state: State, kv: KV) -> KV:
        """The slots, which are kept as those of a state that was read last."""
        self._memos.append((state, kv))
        while len(self._memos) > 1 and self.backbone.slot_bytes * sum(kv.slots for _, kv in self._memos) > KEPT_BYTES:
            # Not always the oldest: of memories that are written to in turn, that is the one needed next.
            self._memos.pop(self._random.randrange(len(self._memos) - 1))
        return kv

    def _opened(self, tokens: Sequence[int]) -> KV:
        """The slots of what a memory begins with, which most memories have in common."""
        if self._opening is None or self._opening[0] != tokens:
            self._opening = tokens, self.backbone.prefill(torch.tensor([tokens], device=self.backbone.device))
        return self._opening[1]

    def _read_code(
        self, cache: PrefixCache, before: Sequence[int], code: bytes, room: int, longest: int
    ) -> Slices[None]:
        tokens, components = self.codec.decode(code)
        held = cache.get_seq_length()
        # Decoding keeps one core busy, and the layers' products need no part of it.
        aside, is_left = ThreadPoolExecutor(1, thread_name_prefix="byheart-decoding"), threading.Event()
        decoded = aside.submit(list, takewhile(lambda _: not is_left.is_set(), components))
        aside.shutdown(wait=False)
        try:
            hidden = yield from self._run_lower(cache, before, tokens.to(self.backbone.device), room, longest)
            while wait([decoded], _PAUSE).not_done:
                yield None
        finally:
            # Whoever gives up does not wait: decoding stops after the group that it is at.
            is_left.set()
        places = torch.arange(held, held + len(tokens), device=hidden.device)
        for start, kv in self.codec.slots(decoded.result(), hidden):
            cache.append(self.backbone.rotate(kv, places, start=start), room=room, start=start)
            yield 0

    def _run_lower(
        self, cache: PrefixCache, before: Sequence[int], tokens: Int[Tensor, " T"], room: int, longest: int
    ) -> Slices[Float[Tensor, "T D"]]:
        """What the first coded layer is given for ``tokens``; the layers below it add to the cache."""
        held, start = cache.get_seq_length(), self.codec.start
        if held > len(before):
            return (yield from self._run_slices(tokens, cache, longest))
        # A pass without slots before it takes two thirds of the time, since it needs no mask.
        whole = torch.cat([tokens.new_tensor(before), tokens])
        with self.backbone.reading([Reading()], room=len(whole)) as fresh:
            pass
        hidden = (yield from self._run_slices(whole, fresh, longest))[held:]
        if start:
            cache.append(fresh.rows_from(held, layers=start), room=room)
        return hidden

    def _run_slices(self, tokens: Int[Tensor, " T"], cache: PrefixCache, longest: int) -> Slices[Float[Tensor, "T D"]]:
        hidden = []
        for part in torch.split(tokens, longest):
            hidden.append(run_lower(self.backbone, part[None], self.codec.start, cache)[0])
            yield 0
        return torch.cat(hidden)

    def _read_exactly(self, cache: PrefixCache, tokens: Sequence[int]) -> None:
        if tokens:
            self.backbone.hidden(torch.tensor([tokens], device=self.backbone.device), cache=cache)

    def _take_known(self, state: State) -> tuple[KV | None, int]:
        """The prefix of the most runs that ``state`` begins with and that were read lately, and their number.

        It is no longer kept: what is read now takes its place.
        """
        found = [place for place, (earlier, _) in enumerate(self._memos) if _begins(state, earlier)]
        if not found:
            return None, 0
        earlier, kv = self._memos.pop(max(found, key=lambda place: self._memos[place][0]["runs"].shape[1]))
        return kv, earlier["runs"].shape[1]

    def _before(self, run: Run, state: State) -> list[int]:
        """The tokens before a run's text."""
        return self.frame.before(run.around, state["first"][:1])[0]

    def _after(self, run: Run) -> list[int]:
        return self.frame.after(run.around)

    def _codes(self, state: State) -> Iterator[bytes]:
        start, data = 0, state["codes"][0].cpu().numpy().tobytes() if state else b""
        for run in runs_of(state):
            yield data[start : start + run.bytes]
            start += run.bytes


def _begins(state: State, earlier: State) -> bool:
    """Whether a state is an earlier one, with or without more runs."""
    return all(torch.equal(part.cpu(), state[name][:, : part.shape[1]].cpu()) for name, part in earlier.items())


def runs_of(state: State) -> list[Run]:
    """The pieces of a state, as written; all rows of a batch have the same."""
    return [Run(*run) for run in state["runs"][0].tolist()] if state else []


def nbytes(backbone: Backbone, tokens: int, times: float) -> int:
    """Bytes of the code of so many tokens: a share of what their slots take with 16 bits a number."""
    share = int(tokens * 2 * backbone.slot_bytes // (backbone.slot.keys[0].element_size() * times))
    return max(LEAST_BYTES + 4 * tokens, share) if tokens else 0


def _state_bytes(backbone: Backbone, texts: Sequence[int], options: Mapping[str, Any]) -> int:
    """Bytes of the state of texts: their codes, and three numbers per piece.

    The first tokens of a text without the chat template, which are not coded, take less.
    """
    longest = options["chunk_tokens"]
    pieces = [min(longest, tokens - start) for tokens in texts for start in range(0, tokens, longest)]
    return sum(nbytes(backbone, piece, options["times"]) + 12 for piece in pieces)
