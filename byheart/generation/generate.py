"""From readings and prompts to tokens: sequences that are decoded together, each in its own way.

A sequence joins and leaves between steps. It has its own reading, decoding and random numbers, so what it says does not
depend on its neighbours, and once it has ended it costs nothing. It knows tokens; it does not know text.

Dimensions: T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from byheart.errors import UsageError
from byheart.generation.decoding import Decoding
from byheart.generation.lanes import Lane, LaneBatch, cast_deltas, make_lane, rows_of
from byheart.generation.prompts import require_room
from byheart.generation.sampling import make_generator, sample
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.reading import Delta, Reading

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is asked: a prompt, what is read before it, and how its answer is decoded.

    ``unconditional_prompt`` is what a model without any memory is asked under context-aware decoding; the same prompt
    without it. The answer ends before a token of ``stop_tokens``.
    """

    prompt: Int[Tensor, " T"]
    reading: Reading = field(default_factory=Reading)
    decoding: Decoding = field(default_factory=Decoding)
    unconditional_prompt: Int[Tensor, " _"] | None = None
    stop_tokens: Collection[int] = ()


class RunningSequence:
    """An answer being made: ``tokens`` so far, ``last`` the newest of them or None where it has ended without one.

    Args:
        room: tokens that the model has positions for; ``is_cut`` says that the answer ended there.
    """

    def __init__(self, request: Request, room: int) -> None:
        self.request = request
        self.most = min(room, request.decoding.max_tokens)
        self.tokens: list[int] = []
        self.last: int | None = None
        self.ended = False
        self._random = make_generator(request.decoding)

    def choose(self, scores: Tensor, likeliest: int) -> None:
        """Take the next token from its scores (V,), or end."""
        decoding = self.request.decoding
        token = sample(scores, decoding, self._random) if decoding.temperature else likeliest
        self.last = None if token in self.request.stop_tokens else token
        if self.last is not None:
            self.tokens.append(token)
        self.ended = self.last is None or len(self.tokens) == self.most

    @property
    def is_cut(self) -> bool:
        """Whether the answer ended for want of positions, before it was complete."""
        return self.last is not None and self.most == len(self.tokens) < self.request.decoding.max_tokens


class Generation:
    """Sequences that share each step's pass through the model.

    Args:
        cache: one that holds the prefixes of the requests that are added first; ``close`` puts it back as it was. It is
            not used where one of them needs a second row, for what it is contrasted with.
    """

    def __init__(self, backbone: Backbone, *, cache: PrefixCache | None = None) -> None:
        self.backbone = backbone
        self.running: list[RunningSequence] = []
        self._parts: list[_Part] = []
        self._lent = _Lent(cache) if cache is not None else None

    def add(self, requests: Sequence[Request]) -> list[RunningSequence]:
        """Read the prompts; the first tokens come with the next step. Raises InputError and UsageError."""
        sequences = [RunningSequence(request, self._room(request)) for request in requests]
        deltas = cast_deltas([request.reading for request in requests], self.backbone.dtype)
        lanes = [self._lane(request, own) for request, own in zip(requests, deltas, strict=True)]
        room = max(len(lane.prompt) for lane in rows_of(lanes)) + max(sequence.most for sequence in sequences)
        batch = LaneBatch(self.backbone, lanes, self._cache(lanes, room))
        with torch.inference_mode():
            self._parts.append(_Part(batch, sequences, batch.read_prompts()))
        self.running += sequences
        return sequences

    def step(self) -> list[RunningSequence]:
        """The next token of every running sequence; gives those sequences."""
        stepped = list(self.running)
        with torch.inference_mode():
            for part in self._parts:
                part.advance()
        if any(sequence.is_cut for sequence in stepped):
            log.warning("An answer was cut short: the model reads at most %d tokens.", self.backbone.positions)
        self._settle()
        return stepped

    def remove(self, sequences: Iterable[RunningSequence]) -> None:
        """End sequences where they are."""
        for sequence in sequences:
            sequence.ended = True
        self._settle()

    def close(self) -> None:
        """End all sequences and give a lent cache back."""
        self.running, self._parts = [], []
        if self._lent is not None:
            self._lent.give_back()

    def _room(self, request: Request) -> int:
        """How many tokens of an answer the model has positions for. Raises InputError where there are none."""
        room = require_room(self.backbone, request.prompt, request.reading)
        if request.decoding.context_aware is None or request.unconditional_prompt is None:
            return room
        return min(room, require_room(self.backbone, request.unconditional_prompt, Reading()))

    def _lane(self, request: Request, deltas: Mapping[str, Delta]) -> Lane:
        other = request.prompt if request.unconditional_prompt is None else request.unconditional_prompt
        return make_lane(self.backbone, request.prompt, request.reading, request.decoding, other, deltas)

    def _cache(self, lanes: Sequence[Lane], room: int) -> PrefixCache:
        rows = rows_of(lanes)
        if self._lent is not None and not self._lent.taken and len(rows) == len(lanes):
            return self._lent.take()
        # A prefix that can be learned from would make the cache so too, and tie it to the passes that fill it.
        with torch.no_grad(), self.backbone.reading([lane.reading for lane in rows], room=room) as cache:
            return cache

    def _settle(self) -> None:
        """Leave out what has ended, and let the rest share one batch."""
        self.running = [sequence for sequence in self.running if not sequence.ended]
        with torch.inference_mode():
            for part in self._parts:
                part.leave_out(keep_rows=self._lent is not None and part.batch.cache is self._lent.cache)
            self._parts = [part for part in self._parts if part.is_running]
            ready = [part for part in self._parts if part.scores is None]
            for part in ready[1:]:
                ready[0].join(part)
                self._parts.remove(part)


@dataclass
class _Part:
    """Sequences in one batch; ``scores`` of their next tokens where they are made already."""

    batch: LaneBatch
    sequences: list[RunningSequence]
    scores: Tensor | None

    @property
    def is_running(self) -> bool:
        return any(not sequence.ended for sequence in self.sequences)

    def advance(self) -> None:
        scores = self.scores
        if scores is None:
            scores = self.batch.read_tokens([(sequence.tokens or [0])[-1] for sequence in self.sequences])
        self.scores = None
        for sequence, row, likeliest in zip(self.sequences, scores, scores.argmax(-1).tolist(), strict=True):
            if not sequence.ended:
                sequence.choose(row, likeliest)

    def leave_out(self, *, keep_rows: bool) -> None:
        ended = [number for number, sequence in enumerate(self.sequences) if sequence.ended]
        if not ended or keep_rows:
            return
        if self.scores is not None:
            self.scores = self.scores[[number for number in range(len(self.sequences)) if number not in ended]]
        self.batch.remove(ended)
        self.sequences = [sequence for sequence in self.sequences if not sequence.ended]

    def join(self, other: _Part) -> None:
        self.batch.join(other.batch)
        self.sequences += other.sequences


class _Lent:
    """A cache of somebody else's, and what it held."""

    def __init__(self, cache: PrefixCache) -> None:
        self.cache, self.valid, self.slots = cache, cache.valid, cache.get_seq_length()
        self.taken = False

    def take(self) -> PrefixCache:
        self.taken = True
        return self.cache

    def give_back(self) -> None:
        self.cache.crop(self.slots - self.cache.get_seq_length())
        self.cache.valid = self.valid


def generate(
    backbone: Backbone,
    prompts: Sequence[Tensor],
    readings: Sequence[Reading],
    *,
    decoding: Decoding | Sequence[Decoding] | None = None,
    stop_tokens: Collection[int] = (),
    cache: PrefixCache | None = None,
    unconditional_prompts: Sequence[Tensor] | None = None,
) -> Generator[list[int | None], None, None]:
    """The next token of every row, step by step; None for a row that has ended. Raises InputError and UsageError.

    Args:
        prompts: one (T,) for each row, of any lengths.
        readings: what each row reads; together they serve as many rows as there are prompts.
        decoding: of all rows, or one for each.
        cache: one that already holds the readings' prefixes, made by ``backbone.reading``; it is put back as it was.
        unconditional_prompts: what a model without any memory is asked, one for each row; the same prompts without it.
    """
    rows = [row for reading in readings for row in reading.rows()]
    others = [None] * len(rows) if unconditional_prompts is None else unconditional_prompts
    each = [decoding or Decoding()] * len(rows) if decoding is None or isinstance(decoding, Decoding) else decoding
    for name, given in (("prompts", prompts), ("unconditional prompts", others), ("decodings", each)):
        if len(given) != len(rows):
            raise UsageError(f"There are {len(given)} {name} for {len(rows)} readings.")
    generation = Generation(backbone, cache=cache)
    try:
        sequences = generation.add(
            [
                Request(prompt, row, own, other, stop_tokens)
                for prompt, row, own, other in zip(prompts, rows, each, others, strict=True)
            ]
        )
        while generation.running:
            stepped = set(map(id, generation.step()))
            yield [sequence.last if id(sequence) in stepped else None for sequence in sequences]
    finally:
        generation.close()
