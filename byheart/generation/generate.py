"""From readings and prompts to tokens: sequences that are decoded together, each in its own way.

A sequence joins and leaves between steps. It has its own reading, decoding and random numbers, so what it says does not
depend on its neighbours, and once it has ended it costs nothing. It knows tokens; it does not know text.

Dimensions: T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.errors import ModelError, UsageError
from byheart.generation.caches import cache_for
from byheart.generation.decoding import Decoding
from byheart.generation.dola import candidate_layers
from byheart.generation.lanes import Lane, LaneBatch, require_room, rows_of
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.reading import Delta, Reading, cast

log = logging.getLogger(__name__)
_FEW = 1024
"""Tokens that most often have the probability that ``top_p`` asks for."""


@dataclass(frozen=True)
class Request:
    """What is asked: a prompt, what is read before it, and how its answer is decoded.

    ``unconditional_prompt`` is what a model without any memory is asked under context-aware decoding; the same prompt
    without it. The answer ends before a token of ``stop_tokens``. With ``logprobs`` each token comes with its
    probability, and with so many of the likeliest ones.
    """

    prompt: Int[Tensor, " T"]
    reading: Reading = field(default_factory=Reading)
    decoding: Decoding = field(default_factory=Decoding)
    unconditional_prompt: Int[Tensor, " _"] | None = None
    stop_tokens: Collection[int] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class ScoredToken:
    """A token with its natural log probability before any sampling, and the likeliest ones at its place."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


class RunningSequence:
    """An answer being made: ``tokens`` so far, ``last`` the newest of them or None where it has ended without one.

    ``scored`` is the newest token with its probability, where the request asks for it.

    Args:
        room: tokens that the model has positions for; ``is_cut`` says that the answer ended there.
    """

    def __init__(self, request: Request, room: int) -> None:
        self.request = request
        self.most = min(room, request.decoding.max_tokens)
        self.tokens: list[int] = []
        self.last: int | None = None
        self.scored: ScoredToken | None = None
        self.ended = False
        seed = request.decoding.seed
        self._random = None if seed is None else torch.Generator().manual_seed(seed)

    def choose(self, scores: Tensor, likeliest: int) -> None:
        """Take the next token from its scores (V,), or end."""
        decoding = self.request.decoding
        token = sample(scores, decoding, self._random) if decoding.temperature else likeliest
        self.last = None if token in self.request.stop_tokens else token
        if self.last is not None:
            self.tokens.append(token)
            if self.request.logprobs is not None:
                self.scored = score_token(scores, token, self.request.logprobs)
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
        self._lent, self._is_taken = cache, False
        self._held = (cache.valid, cache.get_seq_length()) if cache is not None else (None, 0)

    def add(self, requests: Sequence[Request], *, at_once: bool = True) -> list[RunningSequence]:
        """Read the prompts; the first tokens come with the next step. Raises InputError and UsageError.

        Args:
            at_once: otherwise the prompts are left for ``read``, and until then these sequences take no step.
        """
        sequences = [RunningSequence(request, self.room_for(request)) for request in requests]
        deltas = cast([request.reading.deltas for request in requests], self.backbone.dtype)
        lanes = [self._lane(request, own) for request, own in zip(requests, deltas, strict=True)]
        room = max(len(lane.prompt) for lane in rows_of(lanes)) + max(sequence.most for sequence in sequences)
        batch = LaneBatch(self.backbone, lanes, self._cache(lanes, room, may_share=not at_once))
        part = _Part(batch, sequences, None, is_read=False)
        if at_once:
            with torch.inference_mode():
                part.read(None)
        self._parts.append(part)
        self.running += sequences
        return sequences

    @property
    def has_unread(self) -> bool:
        """Whether there are prompts left to ``read``."""
        return not all(part.is_read for part in self._parts)

    def read(self, tokens: int) -> None:
        """Read at most so many tokens of the prompts that are left, those that came first first."""
        part = next((part for part in self._parts if not part.is_read), None)
        if part is not None:
            with torch.inference_mode():
                part.read(tokens)

    def step(self) -> list[RunningSequence]:
        """The next token of every running sequence whose prompt was read; gives those sequences."""
        parts = [part for part in self._parts if part.is_read]
        stepped = [sequence for part in parts for sequence in part.sequences if not sequence.ended]
        with torch.inference_mode():
            for part in parts:
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
            valid, slots = self._held
            self._lent.crop(slots - self._lent.get_seq_length())
            self._lent.valid = valid

    def room_for(self, request: Request) -> int:
        """How many tokens of an answer the model has positions for. Raises InputError where there are none."""
        room = require_room(self.backbone, request.prompt, request.reading)
        if request.decoding.context_aware is None or request.unconditional_prompt is None:
            return room
        return min(room, require_room(self.backbone, request.unconditional_prompt, Reading()))

    def _lane(self, request: Request, deltas: Mapping[str, Delta]) -> Lane:
        """The lane of a sequence, with the second lane that its decoding needs; ``deltas`` in the model's type."""
        decoding, other = request.decoding, request.unconditional_prompt
        lane = Lane(request.prompt, replace(request.reading, deltas={}), deltas)
        if decoding.dola is not None:
            return replace(lane, layers=candidate_layers(decoding.dola, len(self.backbone.layers)))
        if decoding.context_aware is not None:
            alone = Lane(request.prompt if other is None else other, Reading())
            return replace(lane, strength=decoding.context_aware, unconditional=alone)
        if decoding.contrast is None or not deltas:
            return lane
        # Where all changes sit in the last feed-forward block, that block alone has to run twice.
        if set(deltas) <= set(self.backbone.feed_forward_roles(len(self.backbone.layers) - 1)):
            return replace(lane, deltas={}, block_deltas=deltas, strength=decoding.contrast)
        return replace(lane, strength=decoding.contrast, unconditional=Lane(request.prompt, lane.reading))

    def _cache(self, lanes: Sequence[Lane], room: int, *, may_share: bool) -> PrefixCache:
        """A cache for the lanes, with room for so many tokens; it copies no memory where that is not needed."""
        rows = rows_of(lanes)
        if not may_share and self._lent is not None and not self._is_taken and len(rows) == len(lanes):
            self._is_taken = True
            return self._lent
        return cache_for(self.backbone, [lane.reading for lane in rows], room=room, may_share=may_share)

    def _settle(self) -> None:
        """Leave out what has ended, and let the rest share one batch."""
        self.running = [sequence for sequence in self.running if not sequence.ended]
        with torch.inference_mode():
            for part in self._parts:
                if part.batch.cache is not self._lent:
                    part.leave_out_ended()
            self._parts = [part for part in self._parts if not all(sequence.ended for sequence in part.sequences)]
            ready = [part for part in self._parts if part.is_read and part.scores is None]
            for part in ready:
                # Caches of two kinds are stepped one after the other.
                first = next(each for each in ready if type(each.batch.cache) is type(part.batch.cache))
                if first is not part:
                    first.batch.join(part.batch)
                    first.sequences += part.sequences
                    self._parts.remove(part)


@dataclass
class _Part:
    """Sequences in one batch; ``scores`` of their next tokens where they are made already."""

    batch: LaneBatch
    sequences: list[RunningSequence]
    scores: Tensor | None
    is_read: bool

    def read(self, tokens: int | None) -> None:
        self.scores = self.batch.read_prompts(tokens)
        self.is_read = self.scores is not None

    def advance(self) -> None:
        scores = self.scores
        if scores is None:
            scores = self.batch.read_tokens([(sequence.tokens or [0])[-1] for sequence in self.sequences])
        self.scores = None
        for sequence, row, likeliest in zip(self.sequences, scores, scores.argmax(-1).tolist(), strict=True):
            if not sequence.ended:
                sequence.choose(row, likeliest)

    def leave_out_ended(self) -> None:
        running = [number for number, sequence in enumerate(self.sequences) if not sequence.ended]
        if len(running) == len(self.sequences):
            return
        if self.scores is not None:
            self.scores = self.scores[running]
        self.batch.keep(running)
        self.sequences = [self.sequences[number] for number in running]


def score_token(scores: Float[Tensor, " V"], token: int, count: int) -> ScoredToken:
    """The log probability of a token by its scores, and the ``count`` likeliest tokens with theirs."""
    logprobs = torch.log_softmax(scores, dim=-1)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    likeliest = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return ScoredToken(token, float(logprobs[token]), likeliest)


def sample(scores: Float[Tensor, " V"], decoding: Decoding, generator: torch.Generator | None) -> int:
    """A token drawn from the scores at a temperature above 0; by PyTorch's own random numbers without a generator.

    Raises ModelError where the scores are no finite numbers.
    """
    probabilities, tokens = torch.softmax(scores / decoding.temperature, dim=-1), None
    if decoding.top_k or decoding.top_p < 1:
        probabilities, tokens = _allowed(probabilities, decoding)
    # A sum and a search: PyTorch's own drawing makes a random number for each token of the vocabulary.
    total = probabilities.cpu().double().cumsum(-1)
    if not math.isfinite(total[-1]):
        raise ModelError("The model's scores are not finite, so no token can be drawn; try the dtype float32.")
    drawn = torch.rand((), dtype=torch.double, generator=generator) * total[-1]
    place = min(int(torch.searchsorted(total, drawn, right=True)), len(total) - 1)
    return place if tokens is None else int(tokens[place])


def _allowed(probabilities: Float[Tensor, " V"], decoding: Decoding) -> tuple[Float[Tensor, " v"], Int[Tensor, " v"]]:
    """The probabilities of the tokens that may be drawn, and of some others 0, with the tokens; the likeliest first."""
    few = min(decoding.top_k or _FEW, len(probabilities))
    likeliest, tokens = probabilities.topk(few)
    if not decoding.top_k and float(likeliest.sum()) < decoding.top_p:
        likeliest, tokens = probabilities.sort(descending=True)
    allowed = likeliest.cumsum(-1) - likeliest < decoding.top_p
    # The likeliest always is: a probability that single precision does not hold leaves no other.
    allowed[0] = True
    return likeliest * allowed, tokens


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
    unconditional = [None] * len(rows) if unconditional_prompts is None else unconditional_prompts
    decodings = [decoding or Decoding()] * len(rows) if decoding is None or isinstance(decoding, Decoding) else decoding
    for name, values in (("prompts", prompts), ("unconditional prompts", unconditional), ("decodings", decodings)):
        if len(values) != len(rows):
            raise UsageError(f"There are {len(values)} {name} for {len(rows)} readings.")
    generation = Generation(backbone, cache=cache)
    try:
        requests = zip(prompts, rows, decodings, unconditional, strict=True)
        sequences = generation.add([Request(*request, stop_tokens) for request in requests])
        while generation.running:
            stepped = set(map(id, generation.step()))
            yield [sequence.last if id(sequence) in stepped else None for sequence in sequences]
    finally:
        generation.close()
