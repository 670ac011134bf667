"""Slots that stand in a state as codes: coded once, chosen by their codes, of the bytes that are counted."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from byheart.methods import build
from byheart.model.reading import KV, map_slots
from byheart.protocol.kv_slots import concat, kv_to_state, state_to_kv
from byheart.protocol.slot_coding import CodedKV, SlotCoding, encode_slots, move_slots
from byheart.protocol.state import State, kv_slots, nbytes, stack, unstack
from byheart.testing import tiny_backbone
from tests.samples import ALL_FAMILIES, CODED, backbone, fresh, method, same, tokens, written

BITS = pytest.mark.parametrize("bits", [8, 4])
LAYERS = range(3)


def some(slots: int, *, seed: int = 0, batch: int = 1) -> KV:
    generator = torch.Generator().manual_seed(seed)
    like = backbone().slot
    return map_slots(lambda part: torch.randn(batch, part.shape[1], slots, part.shape[3], generator=generator), like)


def coded(slots: int, bits: int, *, seed: int = 0) -> CodedKV:
    return encode_slots(some(slots, seed=seed), bits=bits)


def slots_of(state: State, kept: slice = slice(None)) -> State:
    """Some slots of a state, as they stand there."""
    parts = ("keys.", "values.", "key_ranges.", "value_ranges.")
    return {name: tensor[:, :, kept] for name, tensor in state.items() if name.startswith(parts)}


def equal(ours: KV, theirs: KV) -> bool:
    return all(map(torch.equal, ours.keys + ours.values, theirs.keys + theirs.values))


# ---- slots and their codes ----


@BITS
def test_codes_go_where_the_slots_go(bits: int) -> None:
    kv, index = coded(9, bits), [torch.tensor([[[8, 0, 3], [1, 1, 5]]])] * 3
    for choose in (lambda kv: kv.slice(2, 6), lambda kv: kv.slice(-3), lambda kv: kv.gather(index)):
        found = choose(kv)
        assert isinstance(found, CodedKV)
        assert equal(found.plain, choose(kv.plain))
        assert equal(found.codes, choose(kv.codes))
        assert equal(found.ranges, choose(kv.ranges))


@BITS
def test_what_is_appended_is_coded_and_what_was_there_is_not_coded_again(bits: int) -> None:
    kv, new = coded(4, bits), some(3, seed=1)
    # Codes that belong to no numbers: they would change if they were made again.
    changed = map_slots(lambda part: part ^ 5, kv.codes)
    kv = CodedKV(kv.keys, kv.values, codes=changed, ranges=kv.ranges, bits=bits)
    both = concat(kv, new)
    assert isinstance(both, CodedKV)
    assert equal(both.codes.slice(0, 4), kv.codes)
    assert equal(both.ranges.slice(0, 4), kv.ranges)
    assert equal(both.codes.slice(4), encode_slots(new, bits=bits).codes)
    assert equal(both.plain, kv.plain.append(new))


def test_slots_without_codes_are_moved_without_any() -> None:
    moved = move_slots(KV.append, some(2), some(3))
    assert type(moved) is KV
    assert moved.slots == 5


@BITS
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_state_gives_its_slots_back_as_coded(family: str, bits: int) -> None:
    own = backbone(family)
    coding, kv = SlotCoding(own, bits), own.prefill(tokens(6))
    state = coding.to_state(kv)
    back = coding.to_kv(state)
    assert isinstance(back, CodedKV)
    for ours, theirs in zip(back.keys + back.values, kv.keys + kv.values, strict=True):
        # At most half a step of the widest range.
        assert (ours - theirs).abs().max() <= 1.02 * theirs.abs().max() / ((1 << bits) - 1)
    same(coding.to_state(back), state)
    plain = coding.to_plain(state)
    assert type(plain) is KV
    assert equal(plain, back)


def test_with_16_bits_a_state_is_the_slots_themselves() -> None:
    coding, kv = SlotCoding(backbone(), 16), some(4)
    state = coding.to_state(kv)
    assert all(state[name] is tensor for name, tensor in kv_to_state(kv).items())
    back = coding.to_kv(state)
    assert type(back) is KV
    assert equal(back, kv)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_no_slots_are_none(bits: int) -> None:
    coding = SlotCoding(backbone(), bits)
    assert coding.to_kv({}) is None
    assert coding.to_plain({}) is None


@pytest.mark.parametrize(
    ("dtype", "bits", "expected"),
    [
        (torch.bfloat16, 16, 16.0),
        (torch.bfloat16, 8, 9.0),
        (torch.bfloat16, 4, 5.0),
        (torch.float32, 16, 32.0),
        (torch.float32, 8, 9.0),
        (torch.float32, 4, 5.0),
    ],
)
def test_a_slot_takes_so_many_bits_a_number(dtype: torch.dtype, bits: int, expected: float) -> None:
    own = tiny_backbone(dtype=dtype, hidden_size=128, head_dim=64)
    numbers = sum(part.numel() for part in own.slot.keys + own.slot.values)
    assert 8 * SlotCoding(own, bits).slot_bytes == expected * numbers
    assert nbytes(written(build("full", own, bits=bits), tokens(10))) == 10 * SlotCoding(own, bits).slot_bytes


# ---- methods ----


@BITS
@pytest.mark.parametrize("name", CODED)
def test_few_bits_say_nearly_what_all_do(name: str, bits: int) -> None:
    """One write: what is chosen cannot differ, since nothing was coded before."""
    exact, few = (fresh(name, backbone(), bits=given) for given in (16, bits))
    text = tokens(12, seed=3)
    ours, theirs = few.read(written(few, text)).prefix, exact.read(written(exact, text)).prefix
    assert ours is not None
    assert theirs is not None
    for one, other in zip(ours.keys + ours.values, theirs.keys + theirs.values, strict=True):
        # Half a step of the widest range, and rotating may add up what two numbers are off.
        assert (one - other).abs().max() <= 1.5 * other.abs().max() / ((1 << bits) - 1)


@BITS
@pytest.mark.parametrize("name", ["full", "every-kth", "mean-pooled", "compressed-kv", "last-ffn"])
def test_what_was_kept_is_as_it_was_whatever_is_added(name: str, bits: int) -> None:
    made = fresh(name, backbone(), bits=bits)
    first = written(made, tokens(20, seed=1))
    held, state = kv_slots(first), first
    for seed in range(4):
        state = written(made, tokens(9, seed=seed), start=state)
        same(slots_of(state, slice(0, held)), slots_of(first))


@BITS
@pytest.mark.parametrize("name", ["window", "key-norm", "attention-score"])
def test_every_slot_that_stays_has_the_code_it_had(name: str, bits: int) -> None:
    made = fresh(name, backbone(), bits=bits)
    states = [written(made, tokens(30, seed=9))]
    for seed in range(6):
        states.append(written(made, tokens(3, seed=seed), start=states[-1]))
    stayed = 0
    for earlier, later in pairwise(states):
        for layer in LAYERS:
            before, after = (set(lines(state, layer)) for state in (earlier, later))
            stayed += len(before & after)
            # Of each head three slots are new at most, and what is not new was there before.
            assert len(after - before) <= 2 * 3
    assert stayed > 0


def lines(state: State, layer: int) -> list[tuple[float, ...]]:
    """Each slot's code of a key, with its range and its head."""
    parts = [state[f"{name}.{layer}"][0].float() for name in ("keys", "key_ranges")]
    return [(float(head), *slot) for head, slots in enumerate(torch.cat(parts, -1).tolist()) for slot in slots]


@pytest.mark.parametrize(
    ("name", "bits", "kept"),
    [pytest.param("window", 4, slice(0, 2), marks=pytest.mark.slow), ("full", 8, slice(0, 40))],
)
def test_a_thousand_writes_lose_nothing(name: str, bits: int, kept: slice) -> None:
    """Of a window the sinks are what stays; of everything, the first text."""
    own = tiny_backbone(max_position_embeddings=2048)
    made = build(name, own, bits=bits, **({"sinks": 2, "recent": 6} if name == "window" else {}))
    first = written(made, tokens(40, seed=1))
    state = first
    for seed in range(1000):
        state = written(made, tokens(1, seed=seed), start=state)
    assert kv_slots(state) == (8 if name == "window" else 1040)
    same(slots_of(state, kept), slots_of(first, kept))


@BITS
def test_a_pool_codes_the_slots_that_it_renews_and_no_other(bits: int) -> None:
    made = fresh("latent-pool", backbone(), bits=bits)
    full = written(made, tokens(128, seed=1))
    later = written(made, tokens(20, seed=2), start=full)
    before, after = slots_of(full), slots_of(later)
    for name, tensor in before.items():
        unlike = (tensor != after[name]).any(dim=-1).sum(dim=-1)
        assert tensor.shape[2] == 25
        # Numbers that are unlike may have like ranges or codes by chance.
        assert (unlike <= 8).all(), name
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_method_that_is_trained_has_exact_slots() -> None:
    for name in ("latent-pool", "compressed-kv"):
        made = fresh(name, backbone(), bits=4).train()
        assert written(made, tokens(20))["keys.0"].dtype == torch.float32
        assert written(made.eval(), tokens(20))["keys.0"].dtype == torch.uint8


@BITS
def test_the_first_slot_of_a_cartridge_is_coded_once_and_the_others_are_tuned(bits: int) -> None:
    made = fresh("cartridge", backbone(), bits=bits)
    first = written(made, tokens(20, seed=1))
    later = written(made, tokens(20, seed=2), start=first)
    for name, tensor in first.items():
        assert torch.equal(later[name][:, :, :1], tensor[:, :, :1])
    assert not torch.equal(later["keys.0"], first["keys.0"])


@BITS
@pytest.mark.parametrize("name", CODED)
def test_batched_states_are_those_of_each(name: str, bits: int) -> None:
    made = method(f"{name} {bits} bits")
    states = [written(made, tokens(20, seed=seed)) for seed in (1, 2)]
    both = made.read(stack(states)).rows()
    for state, row, again in zip(states, both, unstack(stack(states)), strict=True):
        alone = made.read(state).prefix
        assert row.prefix is not None
        assert alone is not None
        assert equal(row.prefix, alone)
        same(again, state)


def test_a_state_of_codes_is_no_state_of_slots() -> None:
    codes = written(method("window 8 bits"), tokens(10))
    for case in ("window", "window 4 bits"):
        with pytest.raises(ValueError, match="tensor"):
            method(case).require_own(codes, written=True)
    assert state_to_kv(codes) is not None
