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

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from byheart.errors import InputError, UsageError
from byheart.generation.decoding import Decoding, Score
from byheart.generation.dola import _candidates, _dola
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.reading import Reading


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
    tokens, mask = _left_padded([*prompts, *beside], backbone.device)
    pick = _picker(how)
    done = [False] * len(rows)
    with ExitStack() as stack:
        score = _scorer(backbone, rows, how, cache, tokens.shape[1] + how.max_tokens, stack)
        for _ in range(how.max_tokens):
            with torch.inference_mode():
                chosen = pick(score(tokens, mask))
            step = [None if over else token for over, token in zip(done, chosen.tolist(), strict=True)]
            done = [over or token in stop_tokens for over, token in zip(done, step, strict=True)]
            yield [None if token in stop_tokens else token for token in step]
            if all(done):
                return
            tokens, mask = chosen[:, None], torch.ones_like(chosen[:, None], dtype=torch.bool)


def require_contrast(decoding: Decoding, readings: Sequence[Reading]) -> None:
    """Refuse ``contrast`` where no row changes a weight: it would be plain decoding. Raises UsageError."""
    if decoding.contrast is not None and not any(reading.deltas for reading in readings):
        raise UsageError(
            "contrast sets a memory's change of the weights against the model as it is, but this memory changes none; "
            "take last-ffn, ffn-lora or ffn-edit, or context_aware, which sets any memory against none."
        )


def _check_lengths(backbone: Backbone, prompts: Sequence[Tensor], rows: Sequence[Reading], answer: int = 1) -> None:
    """Refuse what leaves no room for an answer of so many tokens."""
    for prompt, row in zip(prompts, rows, strict=True):
        if len(prompt) == 0:
            raise InputError("There is nothing to ask: the prompt is empty.")
        total = row.slots + len(prompt)
        if total + answer > backbone.positions:
            raise InputError(
                f"The memory's {row.slots} rows and the prompt's {len(prompt)} tokens leave no room for an answer: "
                f"the model reads at most {backbone.positions}. Ask something shorter, or keep a smaller memory."
            )


def _left_padded(prompts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = True
    return tokens, mask


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


def _plain(backbone: Backbone, cache: PrefixCache, tokens: Tensor, mask: Tensor) -> Tensor:
    return backbone.logits(backbone.hidden(tokens, cache=cache, mask=mask)[:, -1])


def _cache_of(backbone: Backbone, rows: Sequence[Reading], room: int) -> PrefixCache:
    # A prefix that can be learned from would make the cache so too, and tie it to the passes that fill it.
    with torch.no_grad(), backbone.reading([replace(row, deltas={}) for row in rows], room=room) as cache:
        return cache


def _changed(backbone: Backbone, rows: Sequence[Reading], score: Score) -> Score:
    """The same with each row's deltas on the model, during the pass only: between steps others may use the model."""
    changes = backbone.changes([row.deltas for row in rows])

    def changed(tokens: Tensor, mask: Tensor) -> Tensor:
        with backbone.changing(changes):
            return score(tokens, mask)

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

    def score(tokens: Tensor, mask: Tensor) -> Tensor:
        # Prompts may come for both halves; an answer's tokens are the same in both.
        halves = 2 * len(rows) // len(tokens)
        hidden = backbone.hidden(tokens.repeat(halves, 1), cache=cache, mask=mask.repeat(halves, 1))[:, -1]
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

    def score(tokens: Tensor, mask: Tensor) -> Tensor:
        with backbone.feed_forward_inputs(last) as taken:
            base = backbone.hidden(tokens, cache=cache, mask=mask)[:, -1:]
        fed = taken[0]
        with backbone.changing(changes):
            output = where.block(fed.input[:, -1:])
        tuned = backbone.finish(where.finish(fed.residual[:, -1:], output))
        ours, theirs = backbone.logits(torch.cat([tuned, base], dim=1)).unbind(1)
        return (1 + strength) * ours - strength * theirs

    return score
