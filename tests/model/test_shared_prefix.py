"""Memories that are read where they are: the same answers as from copies of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from byheart.generation.decoding import Decoding
from byheart.generation.generate import Generation, Request
from byheart.model.backbone import Backbone
from byheart.model.reading import KV, Reading
from byheart.model.shared_prefix import SharedPrefixCache, attend_and_weigh, saves_copies
from byheart.testing import tiny_backbone
from tests.samples import ALL_FAMILIES, backbone, tokens

LONG = Decoding(max_tokens=8, temperature=1.5, seed=5)


def memory(own: Backbone, length: int) -> Reading:
    with torch.no_grad():
        return Reading(own.prefill(tokens(length, seed=length)))


def asked(readings: list[Reading]) -> list[Request]:
    prompts = [tokens(3 + 5 * (n % 3), seed=n)[0] for n in range(len(readings))]
    return [
        Request(prompt, reading, replace(LONG, seed=n, max_tokens=4 + n))
        for n, (prompt, reading) in enumerate(zip(prompts, readings, strict=True))
    ]


def said(own: Backbone, requests: list[Request], *, slices: int | None) -> list[list[int]]:
    """The tokens of answers of which the first two join first; with ``slices``, memories are read where they are."""
    generation = Generation(own)
    sequences = []
    for group in (requests[:2], requests[2:]):
        sequences += generation.add(group, at_once=slices is None)
        while slices is not None and generation.has_unread:
            generation.read(slices)
            generation.step()
        generation.step()
    while generation.running:
        generation.step()
    return [sequence.tokens for sequence in sequences]


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_answers_are_those_over_copies_in_every_family(family: str) -> None:
    own = backbone(family)
    one, two = memory(own, 20), memory(own, 9)
    requests = asked([one, two, one, Reading(), one])
    assert said(own, requests, slices=7) == said(own, requests, slices=None)


def test_a_sliding_window_and_hidden_slots_hide_what_they_hide_in_a_copy() -> None:
    own = tiny_backbone("mistral", sliding_window=8)
    one, two = memory(own, 20), memory(own, 5)
    requests = asked([one, two, one])
    assert said(own, requests, slices=50) == said(own, requests, slices=None)
    own = backbone()
    whole = memory(own, 20).prefix
    assert whole is not None
    generator = torch.Generator().manual_seed(0)
    masks = tuple(torch.rand(keys.shape[:3], generator=generator) < 0.5 for keys in whole.keys)
    masked = Reading(KV(whole.keys, whole.values, masks))
    requests = asked([masked, Reading(whole), masked])
    assert said(own, requests, slices=50) == said(own, requests, slices=None)


def test_a_memory_is_neither_copied_nor_changed() -> None:
    own = backbone()
    reading = memory(own, 20)
    assert reading.prefix is not None
    before = [keys.clone() for keys in reading.prefix.keys]
    caches = [SharedPrefixCache([reading] * 2, layers=len(own.layers), dtype=own.dtype) for _ in range(2)]
    with torch.inference_mode():
        for cache in caches:
            own.hidden(tokens(4, batch=2), cache=cache)
        caches[0].join(caches[1])
        caches[0].drop(1)
        own.hidden(tokens(1, batch=3), cache=caches[0])
    assert caches[0].get_seq_length() == 5
    assert all(map(torch.equal, before, reading.prefix.keys))


def test_copies_are_saved_where_rows_share_a_memory_on_a_cpu() -> None:
    one, two = memory(backbone(), 5), memory(backbone(), 5)
    elsewhere = one.to(torch.device("meta"))
    assert saves_copies([one, two, Reading(), one])
    assert not saves_copies([one, two, Reading(), Reading()])
    assert not saves_copies([elsewhere, elsewhere])


def test_both_ways_to_attend_agree() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 3, count, 8, generator=generator) for count in (5, 11, 11))
    mask = torch.zeros(2, 1, 5, 11).masked_fill_(torch.rand(2, 1, 5, 11, generator=generator) < 0.3, -1e30)
    for hidden in (None, mask):
        fast = attend_and_weigh(query, key, value, hidden, scaling=0.3)
        # A cap that bounds nothing takes the other way.
        slow = attend_and_weigh(query, key, value, hidden, scaling=0.3, softcap=1e6)
        for ours, theirs in zip(fast, slow, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
