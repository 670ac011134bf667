"""The latent pool in slots against a pool in order, and the rate at which it forgets."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import UsageError
from byheart.methods.latent_pool import LatentPool
from byheart.model.backbone import Backbone
from byheart.model.lora import LoRA
from byheart.protocol.state import State, stack
from byheart.testing import tiny_backbone
from tests.naive.latent_pool import OrderedPool
from tests.samples import ALL_FAMILIES, backbone, hooks, logits, stir, tokens

ROWS, BLOCKS = 6, 3
# Shorter than what is renewed, as long, longer; the pool is full after some of them.
LENGTHS = [4, 2, 6, 9, 1, 6, 13, 5, 20]
PROMPT = tokens(5, seed=99)


def pool_of(own: Backbone, **options: Any) -> LatentPool:
    made = LatentPool(own, **{"slots": ROWS, "blocks": BLOCKS, "shortest": 1, "keep_hidden": True, **options})
    stir(made)
    return made.eval()


@torch.no_grad()
def merged(own: Backbone, lora: LoRA | None) -> Any:
    """A copy of the model with an update added to its weights."""
    model: Any = copy.deepcopy(own.model)
    if lora is not None:
        for path, down, up in zip(lora.paths, lora.down, lora.up, strict=True):
            model.get_decoder().get_submodule(path).weight += lora.scale * up @ down
    return model


def twin_of(made: LatentPool) -> OrderedPool:
    own = made.backbone
    models = merged(own, made.writing), merged(own, made.reading)
    return OrderedPool(*models, made.first.detach(), made.mark.detach(), slots=made.slots, blocks=made.blocks)


def survivors(held: int, dropped: int, layers: int, *, seed: int) -> Tensor:
    """Random positions that stay, in order, (L, held - dropped)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(held, generator=generator)[dropped:].sort().values for _ in range(layers)]
    return torch.stack(drawn)


@torch.no_grad()
def grow(made: LatentPool, lengths: list[int]) -> tuple[State, OrderedPool]:
    """Both pools after texts of these lengths, the same slots dropped in both."""
    state, naive = made.init(), twin_of(made)
    for n, length in enumerate(lengths):
        text = tokens(length, seed=n)
        stay = survivors(naive.pool.shape[1], naive.dropped(text), len(made.backbone.layers), seed=n)
        state = made.renew(state, made.dry_run(state, text), kept=stay)
        naive.write(text, stay)
    return state, naive


# ---- the naive twin ----


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_pool_in_slots_reads_as_a_pool_in_order(family: str) -> None:
    own = backbone(family)
    made = pool_of(own)
    state, naive = grow(made, LENGTHS)
    assert naive.pool.shape[1] == ROWS * BLOCKS
    torch.testing.assert_close(made.pool(state)[0], naive.pool, rtol=0, atol=2e-5)
    torch.testing.assert_close(state["recent"][0], naive.pool[:, -ROWS:], rtol=0, atol=2e-5)
    with torch.no_grad():
        ours, theirs = logits(own, made.read(state), PROMPT)[0], naive.read(PROMPT)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("written", range(1, len(LENGTHS)))
def test_an_unfilled_pool_reads_as_a_pool_in_order(written: int) -> None:
    own = backbone()
    made = pool_of(own)
    state, naive = grow(made, LENGTHS[:written])
    torch.testing.assert_close(made.pool(state)[0], naive.pool, rtol=0, atol=2e-5)
    with torch.no_grad():
        torch.testing.assert_close(logits(own, made.read(state), PROMPT)[0], naive.read(PROMPT), rtol=0, atol=1e-4)


@pytest.mark.parametrize("lengths", [[ROWS] * 5, [ROWS - 1] * 6, [ROWS + 1] * 5, [1] * 25], ids=str)
def test_texts_of_one_length_read_as_in_order(lengths: list[int]) -> None:
    own = backbone("qwen3")
    made = pool_of(own)
    state, naive = grow(made, lengths)
    with torch.no_grad():
        torch.testing.assert_close(logits(own, made.read(state), PROMPT)[0], naive.read(PROMPT), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_updates_for_writing_and_reading_are_those_of_two_merged_models(family: str) -> None:
    own = backbone(family)
    targets = ["qkv_proj", "down_proj"] if family == "phi3" else ["q_proj", "v_proj", "k_proj", "up_proj"]
    made = pool_of(own, rank=3, alpha=6.0, targets=targets)
    state, naive = grow(made, LENGTHS)
    torch.testing.assert_close(made.pool(state)[0], naive.pool, rtol=0, atol=5e-5)
    with torch.no_grad():
        torch.testing.assert_close(logits(own, made.read(state), PROMPT)[0], naive.read(PROMPT), rtol=0, atol=2e-4)
    assert hooks(own) == []


def test_a_trained_pool_is_where_every_session_starts() -> None:
    own = backbone()
    made = pool_of(own)
    trained = torch.randn(3, ROWS * BLOCKS, own.dim, generator=torch.Generator().manual_seed(5))
    made.fill(trained)
    naive = twin_of(made)
    naive.pool = trained
    state = made.init()
    text, stay = tokens(9, seed=3), survivors(ROWS * BLOCKS, ROWS, 3, seed=1)
    with torch.no_grad():
        state = made.renew(state, made.dry_run(state, text), kept=stay)
        naive.write(text, stay)
        torch.testing.assert_close(logits(own, made.read(state), PROMPT)[0], naive.read(PROMPT), rtol=0, atol=1e-4)
    assert torch.equal(made.pool(made.init())[0], trained)


@pytest.mark.parametrize("length", [3, 9])
def test_a_dry_run_leaves_the_pool(length: int) -> None:
    made = pool_of(backbone())
    with torch.no_grad():
        state = made.write(made.init(), tokens(20))
        before = {name: tensor.clone() for name, tensor in state.items()}
        delta = made.dry_run(state, tokens(length))
    assert delta.shape == (1, 3, ROWS, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pool_without_hidden_states_reads_the_same(dtype: torch.dtype) -> None:
    own = backbone("llama", dtype)
    with_hidden, without = (pool_of(own, longest=10, keep_hidden=kept) for kept in (True, False))
    with torch.no_grad():
        states = [made.write(made.init(), tokens(200, seed=2)) for made in (with_hidden, without)]
        ours, theirs = (
            logits(own, made.read(s), PROMPT) for made, s in zip((with_hidden, without), states, strict=True)
        )
    assert torch.equal(ours, theirs)
    assert {"hidden"} == states[0].keys() - states[1].keys()
    with pytest.raises(UsageError, match=r"keeps no hidden states; .* keep_hidden=True"):
        without.pool(states[1])


# ---- what a write drops ----


@torch.no_grad()
@pytest.mark.parametrize("forget", ["layer", "shared"])
def test_survivors_keep_their_order_and_new_slots_come_last(forget: str) -> None:
    made = pool_of(backbone(), forget=forget, longest=10)
    state = made.write(made.init(), tokens(60, seed=1))
    for n in range(6):
        piece = tokens(10, seed=n)
        delta = made.dry_run(state, piece)
        after = made.write(state, piece)
        old, new = made.pool(state)[0], made.pool(after)[0]
        assert torch.equal(new[:, -ROWS:], delta[0])
        stayed = []
        for layer in range(3):
            places = [int((old[layer] == slot).all(-1).nonzero()) for slot in new[layer, :-ROWS]]
            assert places == sorted(set(places))
            stayed.append(places)
        assert (stayed[0] == stayed[1] == stayed[2]) == (forget == "shared")
        state = after


@torch.no_grad()
@pytest.mark.parametrize("forget", ["layer", "shared"])
def test_a_text_fades_by_the_same_factor_with_each_write(forget: str) -> None:
    """A text's slots are counted over many sessions; the paper's equation 5 gives the mean, (1 - K / N) ** t."""
    sessions, blocks, times = 150, 4, 10
    made = pool_of(tiny_backbone(num_hidden_layers=2), slots=8, blocks=blocks, forget=forget)
    state = stack([made.init()] * sessions)
    state = {**state, "seed": torch.arange(sessions)}

    def marked(value: float) -> Tensor:
        return torch.full((sessions, 2, 8, 32), value)

    for n in range(blocks + 3):
        state = made.renew(state, marked(float(n)))
    state = made.renew(state, marked(-1.0))
    for t in range(times):
        left = (made.pool(state)[..., 0] == -1.0).sum(2).double() / 8
        expected = (1 - 1 / blocks) ** t
        # Rows of one session fade nearly independently; shared forgetting has one draw for all layers.
        draws = sessions * 8 * (1 if forget == "shared" else 2)
        assert abs(float(left.mean()) - expected) <= 4.5 * (expected * (1 - expected) / draws) ** 0.5
        assert bool((left[:, 0] == left[:, 1]).all()) == (forget == "shared" or t == 0)
        state = made.renew(state, marked(float(t)))


@torch.no_grad()
@pytest.mark.parametrize("before", [0, 1, 3, 6])
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
def test_the_share_that_is_left_is_that_of_a_pool_which_fills_up_first(before: int, trained: bool) -> None:
    """Counted over many sessions: nothing is dropped before the pool is full, which a trained one is at once."""
    sessions, blocks, times = 150, 4, 8
    made = pool_of(tiny_backbone(num_hidden_layers=2), slots=8, blocks=blocks)
    if trained:
        made.fill(torch.zeros(2, 8 * blocks, 32))
    state = {**stack([made.init()] * sessions), "seed": torch.arange(sessions)}

    def marked(value: float) -> Tensor:
        return torch.full((sessions, 2, 8, 32), value)

    for n in range(before):
        state = made.renew(state, marked(float(n)))
    state = made.renew(state, marked(-1.0))
    for later in range(times):
        left = (made.pool(state)[..., 0] == -1.0).sum(2).double() / 8
        expected = made.share_left(before=before, later=later)
        assert abs(float(left.mean()) - expected) <= 4.5 * (expected * (1 - expected) / (sessions * 16)) ** 0.5
        if not trained and before + later < blocks:
            assert expected == float(left.min()) == 1.0
        state = made.renew(state, marked(float(later)))


@pytest.mark.parametrize(
    ("before", "later", "left"),
    [(0, 0, 1.0), (0, 7, 1.0), (0, 8, 7 / 8), (0, 10, (7 / 8) ** 3), (7, 10, (7 / 8) ** 10), (20, 10, (7 / 8) ** 10)],
)
def test_the_law_of_eight_blocks(before: int, later: int, left: float) -> None:
    made = pool_of(backbone(), blocks=8)
    assert made.share_left(before=before, later=later) == pytest.approx(left)


@torch.no_grad()
def test_every_old_slot_is_as_likely_to_go() -> None:
    """Of slots written at different times, none is spared."""
    sessions = 400
    made = pool_of(tiny_backbone(num_hidden_layers=2), slots=5, blocks=3)
    pool = torch.arange(15.0)[None, :, None].expand(2, -1, 32)
    made.fill(pool)
    state = {**stack([made.init()] * sessions), "seed": torch.arange(sessions)}
    state = made.renew(state, torch.full((sessions, 2, 5, 32), -1.0))
    slots = made.pool(state)[..., 0]
    stayed = torch.stack([(slots == place).sum() for place in range(15)]) / (2 * sessions)
    torch.testing.assert_close(stayed, torch.full((15,), 2 / 3), rtol=0, atol=4 * (2 / 9 / 800) ** 0.5)


def test_seeds_forget_differently_and_repeat() -> None:
    own = backbone()

    def rows(seed: int) -> Tensor:
        made = pool_of(own, seed=seed, longest=10)
        with torch.no_grad():
            return made.pool(made.write(made.init(), tokens(200, seed=1)))

    # The first slots differ because what was dropped does; equal seeds repeat it.
    assert torch.equal(rows(3), rows(3))
    assert not torch.equal(rows(3), rows(4))


def test_the_pool_never_outgrows_itself_and_slots_stay_a_permutation() -> None:
    made = pool_of(backbone())
    state = made.init()
    for n, length in enumerate(LENGTHS * 3):
        with torch.no_grad():
            state = made.write(state, tokens(length, seed=n))
        held = state["place"].shape[2]
        assert held <= ROWS * BLOCKS
        assert torch.equal(state["place"].sort(dim=2).values, torch.arange(1, held + 1).expand(1, 3, -1))
        assert state["keys.0"].shape[2] == 1 + held
        assert state["recent"].shape[2] == min(ROWS, held)
        assert int(state["writes"]) == n + 1
    assert made.capacity == 1 + ROWS * BLOCKS


# ---- options ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots must be above 0; it is 0"),
        ({"blocks": 1}, "blocks must be 2 or more, .*; it is 1"),
        ({"forget": "all"}, "forget must be one of layer, shared; it is 'all'"),
        ({"longest": 0}, "longest must be above 0; it is 0"),
        ({"longest": 8, "shortest": 16}, "longest must be at least shortest; they are 8 and 16"),
    ],
)
def test_options_that_make_no_pool_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LatentPool(backbone(), **options)


def test_a_state_of_something_else_is_refused() -> None:
    made = pool_of(backbone())
    empty = {name: tensor for name, tensor in made.init().items() if not name.startswith(("keys", "values"))}
    with pytest.raises(UsageError, match=r"no pool; make one with init\(\)"):
        made.write(empty, tokens(9))
    with pytest.raises(UsageError, match=r"no pool; make one with init\(\)"):
        made.renew(empty, torch.zeros(1, 3, ROWS, 32))
