"""From a memory and a prompt to tokens: greedy or sampled, plain or contrasted, for any family and any mixed batch.

Four ways to score the next token, each one pass through the backbone a step:
- plain: the model with its readings.
- contrast (FastMem, arXiv 2406.16069, section 3.3): (1 + a) * with deltas - a * without them. Where all deltas sit in
  the last layer's feed-forward block, both come from one pass and one cache; that block alone runs twice.
- context-aware (CAD, Shi et al. 2023, arXiv 2305.14739): (1 + a) * with memory - a * without any.
- DoLa (Chuang et al. 2023, arXiv 2309.03883): the last layer's distribution against an earlier layer's.

It knows tokens; it does not know text.

Dimensions: B batch, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from byheart.backbone import Backbone
from byheart.cache import PrefixCache
from byheart.errors import InputError, UsageError
from byheart.reading import Reading

_KEPT_BY_DOLA = 0.1


@dataclass(frozen=True)
class Decoding:
    """How to choose tokens.

    Args:
        max_tokens: at most so many.
        temperature: 0 is greedy; above it, tokens are sampled.
        top_p, top_k: sample from the smallest set with this much probability, and from the k likeliest; 0 has no k.
        seed: of the sampling.
        contrast: FastMem's contrastive decoding with this strength (0.5 in the paper), or none.
        context_aware: CAD with this strength, or none.
        dola: ``high`` or ``low`` candidate layers chosen from the depth, their indices, or none.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    contrast: float | None = None
    context_aware: float | None = None
    dola: str | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens must be 1 or more; it is {self.max_tokens}.")
        for name in ("temperature", "contrast", "context_aware"):
            if not math.isfinite(vars(self)[name] or 0):
                raise UsageError(f"{name} must be a finite number; it is {vars(self)[name]}.")
        if self.temperature < 0:
            raise UsageError(f"temperature must be 0 or more; it is {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1; it is {self.top_p}.")
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 or more; it is {self.top_k}.")
        given = [name for name in ("contrast", "context_aware", "dola") if vars(self)[name] is not None]
        if len(given) > 1:
            raise UsageError(f"Choose one of {', '.join(given)}.")


Score = Callable[[Tensor, Tensor], Tensor]


def generate(
    backbone: Backbone,
    prompts: Sequence[Tensor],
    readings: Sequence[Reading],
    *,
    decoding: Decoding | None = None,
    stop_tokens: Collection[int] = (),
    cache: PrefixCache | None = None,
    others: Sequence[Tensor] | None = None,
) -> Generator[list[int | None], None, None]:
    """The next token of every row, step by step; None for a row that has reached a stop token.

    Args:
        prompts: one (T,) a row, of any lengths.
        readings: what each row reads; together they serve as many rows as there are prompts.
        cache: one that already holds the readings' prefixes, made by ``backbone.reading``; it is put back as it was.
        others: what the side without any memory is asked, a prompt a row; the same prompts without it.
    """
    how = decoding or Decoding()
    rows = [row for reading in readings for row in reading.rows()]
    if len(rows) != len(prompts):
        raise UsageError(f"There are {len(prompts)} prompts for {len(rows)} readings.")
    if others is not None and len(others) != len(prompts):
        raise UsageError(f"There are {len(others)} other prompts for {len(prompts)} prompts.")
    _check_lengths(backbone, prompts, rows)
    beside = others if others is not None and how.context_aware is not None else ()
    _check_lengths(backbone, beside, [Reading()] * len(beside))
    tokens, counts = _left_padded([*prompts, *beside], backbone.device)
    pick = _picker(how)
    done = [False] * len(rows)
    with ExitStack() as stack:
        score = _scorer(backbone, rows, how, cache, tokens.shape[1] + how.max_tokens, stack)
        for _ in range(how.max_tokens):
            with torch.inference_mode():
                chosen = pick(score(tokens, counts))
            step = [None if over else token for over, token in zip(done, chosen.tolist(), strict=True)]
            done = [over or token in stop_tokens for over, token in zip(done, step, strict=True)]
            yield [None if token in stop_tokens else token for token in step]
            if all(done):
                return
            tokens, counts = chosen[:, None], torch.ones_like(chosen[:, None], dtype=torch.bool)


def require_contrast(decoding: Decoding, readings: Sequence[Reading]) -> None:
    """Refuse ``contrast`` where no row changes a weight: it would be plain decoding. Raises UsageError."""
    if decoding.contrast is not None and not any(reading.deltas for reading in readings):
        raise UsageError(
            "contrast sets a memory's change of the weights against the model as it is, but this memory changes none; "
            "take last-ffn, ffn-lora or ffn-edit, or context_aware, which sets any memory against none."
        )


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds a continuation: its summed loss in nats, its tokens, and how many it would choose."""

    loss: float
    tokens: int
    likeliest: int


@torch.no_grad()
def likelihoods(
    backbone: Backbone,
    prompts: Sequence[Tensor],
    readings: Sequence[Reading],
    choices: Sequence[Sequence[Tensor]],
) -> list[list[Likelihood]]:
    """The likelihood of each row's continuations (T,), any number of them; each prompt is read once. Raises InputError.

    Args:
        prompts: one (T,) a row, of any lengths.
    """
    rows = [row for reading in readings for row in reading.rows()]
    longest = max(len(choice) for each in choices for choice in each)
    for prompt, row, each in zip(prompts, rows, choices, strict=True):
        if not all(map(len, each)):
            raise InputError("A choice is empty: it has no token whose likelihood could be measured.")
        _check_lengths(backbone, [prompt], [row], max(map(len, each), default=1))
    tokens, counts = _left_padded(prompts, backbone.device)
    found: list[list[Likelihood]] = [[] for _ in rows]
    with backbone.reading(rows, room=tokens.shape[1] + longest) as cache:
        before = backbone.hidden(tokens, cache=cache, counts=counts)[:, -1:]
        held = cache.get_seq_length()
        for place in range(max(map(len, choices))):
            # Rows with fewer choices go along; what they give is dropped.
            each = [row[min(place, len(row) - 1)] for row in choices]
            for n, one in enumerate(_each_likelihood(backbone, cache, before, each)):
                if place < len(choices[n]):
                    found[n].append(one)
            cache.crop(held - cache.get_seq_length())
    return found


def _each_likelihood(
    backbone: Backbone, cache: PrefixCache, before: Tensor, each: Sequence[Tensor]
) -> Iterator[Likelihood]:
    """Of one continuation a row, ``before`` (B, 1, D) being the states of the last tokens of the prompts."""
    target = pad_sequence(list(each), batch_first=True).to(backbone.device)
    hidden = before
    if target.shape[1] > 1:
        hidden = torch.cat([before, backbone.hidden(target[:, :-1], cache=cache)], dim=1)
    for row, choice in enumerate(each):
        # One row's logits at a time: a vocabulary is wide.
        scores = torch.log_softmax(backbone.logits(hidden[row, : len(choice)]), dim=-1)
        own = target[row, : len(choice)]
        loss = -scores.gather(1, own[:, None]).sum().item()
        yield Likelihood(loss, len(choice), int((scores.argmax(-1) == own).sum()))


def _check_lengths(backbone: Backbone, prompts: Sequence[Tensor], rows: Sequence[Reading], answer: int = 1) -> None:
    """Refuse what leaves no room for an answer of so many tokens."""
    for prompt, row in zip(prompts, rows, strict=True):
        if len(prompt) == 0:
            raise InputError("There is nothing to ask: the prompt is empty.")
        total = row.length + len(prompt)
        if total + answer > backbone.positions:
            raise InputError(
                f"The memory's {row.length} rows and the prompt's {len(prompt)} tokens leave no room for an answer: "
                f"the model reads at most {backbone.positions}. Ask something shorter, or keep a smaller memory."
            )


def _left_padded(prompts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    counts = torch.zeros(len(prompts), longest, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        counts[row, longest - len(prompt) :] = True
    return tokens, counts


def _picker(how: Decoding) -> Callable[[Tensor], Tensor]:
    if how.temperature == 0:
        return lambda logits: logits.argmax(-1)
    generator = torch.Generator().manual_seed(how.seed) if how.seed is not None else None

    def sample(logits: Tensor) -> Tensor:
        scores, order = (logits / how.temperature).sort(dim=-1, descending=True)
        probabilities = torch.softmax(scores, dim=-1)
        before = probabilities.cumsum(-1) - probabilities
        allowed = before < how.top_p
        if how.top_k:
            allowed[:, how.top_k :] = False
        drawn = torch.multinomial((probabilities * allowed).cpu(), 1, generator=generator)
        return order.gather(-1, drawn.to(order.device)).squeeze(-1)

    return sample


def _scorer(
    backbone: Backbone,
    rows: Sequence[Reading],
    how: Decoding,
    cache: PrefixCache | None,
    room: int,
    stack: ExitStack,
) -> Score:
    """The chosen way to score; a cache that was lent is put back by ``stack``."""
    if how.contrast is not None and not _in_last_block(backbone, rows):
        return _pair(backbone, rows, [replace(row, deltas={}) for row in rows], how.contrast, room)
    if how.context_aware is not None:
        return _pair(backbone, rows, [Reading() for _ in rows], how.context_aware, room)
    if cache is None:
        cache = _cache_of(backbone, rows, room)
    stack.callback(_put_back, cache, cache.valid, cache.get_seq_length())
    if how.contrast is not None:
        return _contrast(backbone, rows, how.contrast, cache)
    if how.dola is not None:
        return _changed(backbone, rows, _dola(backbone, _candidates(how.dola, len(backbone.layers)), cache))
    return _changed(backbone, rows, partial(_plain, backbone, cache))


def _plain(backbone: Backbone, cache: PrefixCache, tokens: Tensor, counts: Tensor) -> Tensor:
    return backbone.logits(backbone.hidden(tokens, cache=cache, counts=counts)[:, -1])


def _cache_of(backbone: Backbone, rows: Sequence[Reading], room: int) -> PrefixCache:
    # A prefix that can be learned from would make the cache so too, and tie it to the passes that fill it.
    with torch.no_grad(), backbone.reading([replace(row, deltas={}) for row in rows], room=room) as cache:
        return cache


def _changed(backbone: Backbone, rows: Sequence[Reading], score: Score) -> Score:
    """The same with each row's deltas on the model, during the pass only: between steps others may use the model."""
    changes = backbone.changes([row.deltas for row in rows])

    def changed(tokens: Tensor, counts: Tensor) -> Tensor:
        with backbone.changing(changes):
            return score(tokens, counts)

    return changed


def _put_back(cache: PrefixCache, valid: Tensor | None, held: int) -> None:
    cache.crop(held - cache.get_seq_length())
    cache.valid = valid


def _pair(
    backbone: Backbone,
    rows: Sequence[Reading],
    others: Sequence[Reading],
    strength: float,
    room: int,
) -> Score:
    """Each row beside another reading, with the same prompt or one of its own; both halves run as one batch."""
    cache = _cache_of(backbone, [*rows, *others], room)

    def score(tokens: Tensor, counts: Tensor) -> Tensor:
        # Prompts may come for both halves; an answer's tokens are the same in both.
        halves = 2 * len(rows) // len(tokens)
        hidden = backbone.hidden(tokens.repeat(halves, 1), cache=cache, counts=counts.repeat(halves, 1))[:, -1]
        ours, theirs = backbone.logits(hidden).chunk(2)
        return (1 + strength) * ours - strength * theirs

    return _changed(backbone, [*rows, *others], score)


def _in_last_block(backbone: Backbone, rows: Sequence[Reading]) -> bool:
    paths = {path for row in rows for path in row.deltas}
    return paths <= set(backbone.feed_forward_roles(len(backbone.layers) - 1))


def _contrast(backbone: Backbone, rows: Sequence[Reading], strength: float, cache: PrefixCache) -> Score:
    """Everything below the last feed-forward block is the same for both sides, so it runs once."""
    last = len(backbone.layers) - 1
    where = backbone.feed_forward(last)
    changes = backbone.changes([row.deltas for row in rows])

    def score(tokens: Tensor, counts: Tensor) -> Tensor:
        with backbone.feed_forward_inputs(last) as taken:
            base = backbone.hidden(tokens, cache=cache, counts=counts)[:, -1:]
        fed = taken[0]
        with backbone.changing(changes):
            output = where.block(fed.input[:, -1:])
        tuned = backbone.finish(where.finish(fed.residual[:, -1:], output))
        ours, theirs = backbone.logits(torch.cat([tuned, base], dim=1)).unbind(1)
        return (1 + strength) * ours - strength * theirs

    return score


def _candidates(chosen: str | Sequence[int], depth: int) -> list[int]:
    """Indices of layers whose outputs are compared: every second one of the upper or lower half, or the given ones."""
    if isinstance(chosen, str):
        halves = {"high": range(depth // 2, depth - 1, 2), "low": range(0, depth // 2, 2)}
        if chosen not in halves:
            raise UsageError(f"dola must be high, low or a list of layers; it is '{chosen}'.")
        return list(halves[chosen]) or [0]
    if not chosen or any(not 0 <= layer < depth - 1 for layer in chosen):
        raise UsageError(f"dola's layers must lie between 0 and {depth - 2}; they are {list(chosen)}.")
    return sorted(set(chosen))


def _dola(backbone: Backbone, candidates: Sequence[int], cache: PrefixCache) -> Score:
    """The last layer's log-probabilities less those of the candidate that differs from it most, by Jensen-Shannon."""

    def score(tokens: Tensor, counts: Tensor) -> Tensor:
        early: dict[int, Tensor] = {}
        with backbone.layer_outputs(lambda index, hidden: early.__setitem__(index, hidden[:, -1])):
            last = backbone.hidden(tokens, cache=cache, counts=counts)[:, -1]
        # As published, an early layer's states go to the head without the final norm.
        stacked = torch.stack([last, *(early[index] for index in candidates)])
        log_p = torch.log_softmax(backbone.logits(stacked), dim=-1)
        return dola_scores(log_p[0], log_p[1:])

    return score


def dola_scores(mature: Float[Tensor, "B V"], premature: Float[Tensor, "C B V"]) -> Float[Tensor, "B V"]:
    """DoLa's scores from log-probabilities of the last layer and of C candidates; implausible tokens get -inf."""
    middle = torch.logaddexp(mature[None], premature) - torch.log(torch.tensor(2.0))
    divergence = 0.5 * (
        (mature.exp()[None] * (mature[None] - middle)).sum(-1) + (premature.exp() * (premature - middle)).sum(-1)
    )
    best = divergence.argmax(0)
    chosen = premature.gather(0, best[None, :, None].expand(1, -1, premature.shape[-1]))[0]
    plausible = mature >= mature.amax(-1, keepdim=True) + torch.log(torch.tensor(_KEPT_BY_DOLA))
    return torch.where(plausible, mature - chosen, float("-inf"))
