"""Slots hidden from some heads: on every kernel, in the cache as its rows come and go, and through a whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from byheart.errors import UnsupportedModelError
from byheart.model import attention
from byheart.model.backbone import Backbone
from byheart.model.head_masks import attach_mask, with_head_mask
from byheart.model.kv_cache import GrowingLayer, PrefixCache
from byheart.model.observed_attention import observing
from byheart.model.reading import KV, Reading, map_slots
from byheart.testing import tiny_backbone, tiny_model
from tests.samples import ALL_FAMILIES, backbone, greedy, logits, tokens

H, W, LAYERS = 2, 4, 2
PROMPT = tokens(6, seed=9)


def random_mask(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def prefix(slots: int, *, seed: int, masked: bool = True) -> KV:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(1, H, slots, W, generator=generator) for _ in range(2 * LAYERS)]
    masks = tuple(random_mask(1, H, slots, seed=seed + n) for n in range(LAYERS)) if masked else ()
    return KV(tuple(parts[:LAYERS]), tuple(parts[LAYERS:]), masks)


# ---- values ----


def test_masks_go_with_their_slots() -> None:
    one, two, plain = prefix(5, seed=1), prefix(3, seed=2), prefix(4, seed=3, masked=False)
    assert torch.equal(one.slice(1, 4).masks[1], one.masks[1][:, :, 1:4])
    assert torch.equal(one.append(two).masks[0], torch.cat([one.masks[0], two.masks[0]], dim=2))
    chosen = torch.tensor([3, 1]).expand(1, H, 2)
    assert torch.equal(one.gather([chosen] * LAYERS).masks[1], one.masks[1][:, :, [3, 1]])
    ones = torch.ones(1, H, 4, dtype=torch.bool)
    assert torch.equal(plain.append(one).masks[0], torch.cat([ones, one.masks[0]], dim=2))
    assert torch.equal(one.append(plain).masks[0], torch.cat([one.masks[0], ones], dim=2))
    assert plain.append(plain).masks == plain.gather([chosen] * LAYERS).masks == ()
    assert all(map(torch.equal, one.rows()[0].masks, one.masks))
    assert Reading(one).bytes == Reading(map_slots(lambda part: part, one)).bytes + LAYERS * H * 5


def test_turned_slots_keep_their_masks() -> None:
    own, kv = backbone(), backbone().prefill(tokens(5))
    masked = KV(kv.keys, kv.values, tuple(random_mask(1, 2, 5, seed=n) for n in range(len(kv.keys))))
    assert own.rotate(masked, 3).masks is masked.masks


# ---- attention ----


def written_out(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, softcap: float | None) -> Tensor:
    """Attention by its formula; ``seen`` (B, H, T, M)."""
    group = query.shape[1] // key.shape[1]
    key, value, seen = (part.repeat_interleave(group, dim=1) for part in (key, value, seen))
    scores = query @ key.mT * 0.3
    scores = scores if softcap is None else (scores / softcap).tanh() * softcap
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("kind", ["none", "rows", "additive"])
@pytest.mark.parametrize("kernel", ["stock", "folded", "grouped", "softcap"])
@pytest.mark.parametrize("rows", [1, 5])
def test_every_kernel_hides_slots_from_heads(
    kernel: str, kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(rows)
    query, key, value = (torch.randn(2, n, m, 8, generator=generator) for n, m in ((6, rows), (2, 12), (2, 12)))
    causal = torch.ones(rows, 12, dtype=torch.bool).tril(12 - rows).expand(2, 1, -1, -1).clone()
    hidden = random_mask(2, 2, 6, seed=3)
    if kind != "none":
        causal[1, :, :, :2] = False
    seen = causal & torch.nn.functional.pad(hidden, (0, 6), value=True)[:, :, None]
    given = {"none": None, "rows": causal, "additive": torch.zeros(causal.shape).masked_fill(~causal, -1e30)}[kind]
    softcap = 2.0 if kernel == "softcap" else None
    if softcap is None:
        monkeypatch.setattr(attention, "choose_kernel", lambda *parts: kernel)
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True  # type: ignore[assignment]
    carried = attach_mask(key.clone(), hidden)
    out, _ = attention.attention_forward(module, query, carried, value, given, scaling=0.3, softcap=softcap)
    torch.testing.assert_close(out, written_out(query, key, value, seen, softcap), rtol=0, atol=1e-5)


def test_without_a_mask_nothing_is_made() -> None:
    query, key, mask = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 5, 8), torch.ones(1, 1, 3, 5, dtype=torch.bool)
    assert with_head_mask(query, key, None) is None
    assert with_head_mask(query, key, mask) is mask


# ---- the cache ----


def seen_rows(cache: PrefixCache) -> list[tuple[Tensor, Tensor]]:
    """What each row's heads see in the last layer (H, M), and its keys, without padding."""
    layer = cache.layers[-1]
    assert isinstance(layer, GrowingLayer)
    keys, _ = layer.past()
    mask = layer.whole_mask()
    mask = torch.ones(keys.shape[:3], dtype=torch.bool) if mask is None else mask
    valid = cache.valid if cache.valid is not None else torch.ones(len(keys), keys.shape[2], dtype=torch.bool)
    return [(mask[b][:, own], keys[b][:, own]) for b, own in enumerate(valid)]


def expected_row(kv: KV) -> tuple[Tensor, Tensor]:
    mask = kv.masks[-1][0] if kv.masks else torch.ones(H, kv.slots, dtype=torch.bool)
    return mask, kv.keys[-1][0]


def require_rows(cache: PrefixCache, kvs: list[KV]) -> None:
    for ours, theirs in zip(seen_rows(cache), map(expected_row, kvs), strict=True):
        assert all(map(torch.equal, ours, theirs))


def held(*kvs: KV) -> PrefixCache:
    return PrefixCache.of([Reading(kv) for kv in kvs], layers=LAYERS, dtype=torch.float32)


def _both(kvs: list[KV]) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    return [kv.keys for kv in kvs], [kv.values for kv in kvs]


some_rows = st.lists(st.tuples(st.integers(1, 90), st.booleans()), min_size=1, max_size=4)


@torch.no_grad()
@given(ours=some_rows, theirs=some_rows, grown=st.integers(0, 3), dropped=st.lists(st.integers(0, 7), max_size=3))
def test_masks_stay_with_rows_that_come_and_go(
    ours: list[tuple[int, bool]], theirs: list[tuple[int, bool]], grown: int, dropped: list[int]
) -> None:
    def some(rows: list[tuple[int, bool]], seed: int) -> list[KV]:
        return [prefix(count, seed=seed + n, masked=masked) for n, (count, masked) in enumerate(rows)]

    kvs, more = some(ours, 1), some(theirs, 50)
    cache, other = held(*kvs), held(*more)
    require_rows(cache, kvs)
    if grown:
        new = [prefix(grown, seed=90 + n, masked=False) for n in range(len(kvs))]
        cache.step(torch.zeros(len(kvs), grown, 1))
        for number, layer in enumerate(cache.layers):
            keys, values = (torch.cat([parts[number] for parts in each]) for each in _both(new))
            layer.update(keys, values)
        kvs = [kv.append(n) for kv, n in zip(kvs, new, strict=True)]
    cache.join(other)
    kvs += more
    require_rows(cache, kvs)
    for row in dropped:
        if row < len(kvs) > 1:
            cache.drop(row)
            kvs[row] = kvs[-1]
            kvs.pop()
            cache.trim()
    require_rows(cache, kvs)


@torch.no_grad()
def test_masks_are_cropped_and_slots_with_masks_are_appended() -> None:
    one, two, plain = prefix(5, seed=1), prefix(3, seed=2), prefix(2, seed=3, masked=False)
    cache = held(one)
    for more in (plain, two):
        cache.append(more)
    require_rows(cache, [one.append(plain).append(two)])
    taken = cache.rows_from(2, 9)
    assert torch.equal(taken.masks[1], one.append(plain).append(two).masks[1][:, :, 2:9])
    assert cache.rows_from(5, 7).masks == ()
    cache.crop(-4)
    require_rows(cache, [one.append(plain).slice(0, 6)])
    cache.crop(-3)
    require_rows(cache, [one.slice(0, 3)])
    later = held(plain)
    later.append(one)
    require_rows(later, [plain.append(one)])


@torch.no_grad()
def test_rows_that_are_repeated_and_chosen_keep_their_masks() -> None:
    one, two = prefix(5, seed=1), prefix(5, seed=2)
    cache = held(one, two)
    cache.batch_repeat_interleave(2)
    require_rows(cache, [one, one, two, two])
    cache.batch_select_indices(torch.tensor([0, 2, 3]))
    require_rows(cache, [one, two, two])
    cache.reorder_cache(torch.tensor([1, 0, 0]))  # type: ignore[arg-type]
    require_rows(cache, [two, one, one])


# ---- a whole model ----


def with_slots_hidden(own: Backbone, text: Tensor, hidden: list[int], *, fill: float = 3.0) -> Reading:
    """A text of which no head sees some slots, in whose place stands something else."""
    kv = own.prefill(text)
    mask = torch.ones(1, kv.keys[0].shape[1], text.shape[1], dtype=torch.bool)
    mask[:, :, hidden] = False
    masks = (mask,) * len(kv.keys)
    filled = map_slots(lambda part: torch.where(mask[..., None], part, torch.full_like(part, fill)), kv)
    return Reading(KV(filled.keys, filled.values, masks))


@torch.no_grad()
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_slot_that_no_head_sees_is_one_that_the_model_does_not_see(family: str) -> None:
    own, eager = backbone(family), tiny_model(family)
    eager.set_attn_implementation("eager")
    text, hidden = tokens(20, seed=1), [3, 4, 11, 19]
    reading = with_slots_hidden(own, text, hidden)
    cache: Any = DynamicCache()
    given = {own.anatomy.cache_argument: cache}
    eager(text, use_cache=True, **given)
    seen = torch.ones(1, 26, dtype=torch.long)
    seen[:, hidden] = 0
    expected = eager(PROMPT, attention_mask=seen, position_ids=torch.arange(20, 26)[None], **given).logits
    torch.testing.assert_close(logits(own, reading, PROMPT), expected, rtol=0, atol=1e-4)
    # Token by token, as answers are made.
    with own.reading([reading]) as held_cache:
        steps = [own.logits(own.hidden(PROMPT[:, n : n + 1], cache=held_cache)) for n in range(6)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_observed_attention_gives_nothing_to_hidden_slots() -> None:
    own = backbone()
    with observing(4) as seen, own.reading([with_slots_hidden(own, tokens(20, seed=1), [3, 4])]) as cache:
        own.hidden(PROMPT, cache=cache)
    # The first passes are those that find whether slots can be hidden.
    for layer in seen.layers[-len(own.layers) :]:
        assert not layer[:, :, 3:5].any()
        assert bool((layer[:, :, :3] > 0).all())


def test_beam_search_reads_with_masks() -> None:
    own, text = backbone(), tokens(12, seed=1)
    options = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    told = []
    for fill in (0.0, 5.0):
        reading = with_slots_hidden(own, text, [2, 3, 9], fill=fill)
        with own.reading([reading] * 3) as cache:
            over = {own.anatomy.cache_argument: cache}
            said = own.model.generate(PROMPT, attention_mask=torch.ones(1, 18).long(), **options, **over)
        told.append(said[0].tolist())
    assert told[0] == told[1]


def test_a_model_that_cannot_hide_slots_is_refused_and_is_found_by_running_it() -> None:
    model = tiny_model(seed=3)
    model.set_attn_implementation("sdpa")
    own = Backbone(model)
    assert not own.hides_slots
    assert tiny_backbone(seed=3).hides_slots
    reading = with_slots_hidden(own, tokens(9), [2])
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM cannot hide slots .*'byheart'"):
        greedy(own, [reading], [PROMPT[0]])
