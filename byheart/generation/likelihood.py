"""How likely a model finds given continuations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from byheart.errors import InputError
from byheart.generation.caches import cache_for
from byheart.generation.lanes import pad_left, require_room
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.reading import Reading


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
    longest = max(len(choice) for row_choices in choices for choice in row_choices)
    for prompt, row, row_choices in zip(prompts, rows, choices, strict=True):
        if not all(map(len, row_choices)):
            raise InputError("A choice is empty: it has no token whose likelihood could be measured.")
        require_room(backbone, prompt, row, answer_tokens=max(map(len, row_choices), default=1))
    tokens, mask = pad_left(prompts, backbone.device)
    found: list[list[Likelihood]] = [[] for _ in rows]
    cache = cache_for(backbone, rows, room=tokens.shape[1] + longest)
    with backbone.deltas([row.deltas for row in rows]):
        before = backbone.hidden(tokens, cache=cache, mask=mask)[:, -1:]
        held = cache.get_seq_length()
        for place in range(max(map(len, choices))):
            # Rows with fewer choices go along; what they give is dropped.
            continuations = [row_choices[min(place, len(row_choices) - 1)] for row_choices in choices]
            for n, likelihood in enumerate(_each_likelihood(backbone, cache, before, continuations)):
                if place < len(choices[n]):
                    found[n].append(likelihood)
            cache.crop(held - cache.get_seq_length())
    return found


def _each_likelihood(
    backbone: Backbone, cache: PrefixCache, before: Tensor, continuations: Sequence[Tensor]
) -> Iterator[Likelihood]:
    """Of one continuation a row, ``before`` (B, 1, D) being the states of the last tokens of the prompts."""
    target = pad_sequence(list(continuations), batch_first=True).to(backbone.device)
    hidden = before
    if target.shape[1] > 1:
        hidden = torch.cat([before, backbone.hidden(target[:, :-1], cache=cache)], dim=1)
    for row, continuation in enumerate(continuations):
        # One row's logits at a time: a vocabulary is wide.
        scores = torch.log_softmax(backbone.logits(hidden[row, : len(continuation)]), dim=-1)
        tokens = target[row, : len(continuation)]
        loss = -scores.gather(1, tokens[:, None]).sum().item()
        yield Likelihood(loss, len(continuation), int((scores.argmax(-1) == tokens).sum()))
