"""The long-term pool against a twin of lists; what stays for how long, what is found, and how that is learned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import UsageError
from byheart.methods.long_term_pool import LongTermPool
from byheart.model.backbone import Backbone
from byheart.protocol.episode import Episode, collate
from byheart.protocol.objective import Objective
from byheart.protocol.state import State, stack
from byheart.session.session import Session
from byheart.text.encoder import ChatEncoder
from tests.conftest import tiny_tokenizer
from tests.naive.latent_pool import OrderedPool
from tests.naive.long_term_pool import OrderedLongTermPool
from tests.samples import backbone, logits, stir, tokens, written

SLOTS, BLOCKS, RECALLED = 4, 2, 2
LENGTHS = [9, 3, 6, 12, 4, 7, 5, 8, 6, 4, 11, 6, 5, 9, 4]
PROMPT = tokens(6, seed=99)
SMALL = {
    "slots": SLOTS,
    "blocks": BLOCKS,
    "recalled": RECALLED,
    "merge_every": 3,
    "lives": 2.0,
    "width": 5,
    "shortest": 1,
}


def pool_of(own: Backbone, **options: Any) -> LongTermPool:
    made = LongTermPool(own, **{**SMALL, **options})
    stir(made, size=0.3)
    return made.eval()


def twin_of(made: LongTermPool) -> OrderedLongTermPool:
    """The same parts; its projectors have the layer's own norm before them, as published."""
    model: Any = copy.deepcopy(made.backbone.model)
    pool = OrderedPool(model, model, made.pool.first.detach(), made.pool.mark.detach(), slots=SLOTS, blocks=BLOCKS)

    def project(projector: Any) -> Any:
        def call(layer: int, hidden: Tensor) -> Tensor:
            norm = model.get_decoder().layers[layer].input_layernorm
            inner = (projector.inner[layer] / norm.weight) @ norm(hidden).T
            return (projector.outer[layer] @ (inner * torch.sigmoid(inner))).T.detach()

        return call

    return OrderedLongTermPool(
        pool,
        project(made.query),
        project(made.address),
        recalled=RECALLED * SLOTS,
        merge_every=made.merge_every,
        lives=made.lives,
        decay=made.decay,
    )


@torch.no_grad()
def both_written(made: LongTermPool, naive: OrderedLongTermPool, state: State, number: int) -> State:
    """Write the text of a number into both, the same slots dropped."""
    text = tokens(LENGTHS[number], seed=number)
    held, layers = naive.pool.pool.shape[1], len(made.backbone.layers)
    generator = torch.Generator().manual_seed(number)
    dropped = naive.pool.dropped(text)
    drawn = [torch.randperm(held, generator=generator)[dropped:].sort().values for _ in range(layers)]
    naive.write(text, torch.stack(drawn))
    return made.renew(state, made.pool.dry_run(state, text), torch.stack(drawn))


# ---- the naive twin ----


@pytest.mark.parametrize("options", [{}, {"lives": 30.0}, {"decay": 2.0}, {"merge_every": 1}], ids=str)
def test_what_a_prompt_reads_is_what_lists_and_full_passes_give(options: dict[str, Any]) -> None:
    own = backbone()
    made = pool_of(own, **options)
    naive, state = twin_of(made), made.init()
    for number in range(len(LENGTHS)):
        state = both_written(made, naive, state, number)
        for name, stored in (("cached_", naive.cache), ("long_", naive.long)):
            assert state[f"{name}stamp"][0].tolist() == [[row.born for row in layer] for layer in stored]
        assert state["long_lives"][0].tolist() == [row.lives for row in naive.long[0]]
        ours = logits(own, made.read(made.select(state, PROMPT[0])), PROMPT)[0]
        torch.testing.assert_close(ours, naive.read(PROMPT), rtol=0, atol=1e-4)
    assert naive.long[0]
    assert options or len(naive.long[0]) < sum(LENGTHS)


# ---- what stays ----


def test_a_slot_leaves_when_its_lives_are_over() -> None:
    made = pool_of(backbone(), merge_every=2, lives=3.0, recalled=1)
    state, text = made.init(), tokens(SLOTS)
    held = []
    for _ in range(20):
        state = written(made, text, start=state)
        held.append((state["long_stamp"].shape[2], state["cached_stamp"].shape[2]))
    # The pool is full after 2 writes; a merge every 2; what came with one stays for the next.
    assert held[:6] == [(0, 0), (0, 0), (0, 4), (8, 0), (8, 4), (16, 0)]
    assert {long for long, _ in held[6:]} == {16}
    assert state["long_lives"][0].tolist() == [1.0] * 8 + [2.0] * 8


def test_a_merge_that_would_leave_too_few_takes_no_lives() -> None:
    made = pool_of(backbone(), merge_every=1, lives=1.0)
    state = written(made, tokens(9), tokens(9), tokens(9))
    assert state["long_lives"].tolist() == [[1.0] * 4]


def test_the_first_that_came_leave_where_there_are_too_many() -> None:
    made = pool_of(backbone(), merge_every=1, lives=1000.0, most=10)
    state = made.init()
    for n in range(9):
        before, state = state, written(made, tokens(SLOTS, seed=n), start=state)
    assert state["long_stamp"].shape[2] == 10
    assert torch.equal(state["long_stamp"][:, :, :6], before["long_stamp"][:, :, 4:])


def test_stored_slots_are_shared_until_a_merge() -> None:
    made = pool_of(backbone(), merge_every=4)
    state = written(made, *(tokens(SLOTS, seed=n) for n in range(4)))
    after = written(made, tokens(SLOTS), start=state)
    assert state["long_keys.0"].shape[2]
    assert after["long_keys.0"].data_ptr() == state["long_keys.0"].data_ptr()


def test_the_share_that_is_left_counts_what_waits() -> None:
    made = pool_of(backbone(), merge_every=60, lives=10.0)
    assert made.share_left(before=2, later=540) == 1.0
    assert made.share_left(before=2, later=542) == made.pool.share_left(before=2, later=2) == 0.25
    assert pool_of(backbone(), most=8).share_left(before=2, later=3) == 0.5


# ---- what a question finds ----


def full(made: LongTermPool) -> State:
    return written(made, *(tokens(SLOTS, seed=n) for n in range(12)))


def test_other_questions_find_other_slots() -> None:
    made = pool_of(backbone(), lives=100.0)
    state = full(made)
    found = [made.select(state, tokens(6, seed=n)[0])["recalled"] for n in (1, 2)]
    assert found[0].shape == (1, 3, RECALLED * SLOTS)
    assert not torch.equal(*found)
    stamps = torch.cat([state["long_stamp"], state["cached_stamp"]], dim=2)
    assert bool((stamps.gather(2, found[0]).diff(dim=2) > 0).all())


def test_an_untrained_one_finds_the_newest() -> None:
    made = LongTermPool(backbone(), **{**SMALL, "lives": 100.0}).eval()
    state = full(made)
    chosen = made.select(state, PROMPT[0])
    stamps = torch.cat([state["long_stamp"], state["cached_stamp"]], dim=2)
    newest = stamps.sort(dim=2).values[:, :, -RECALLED * SLOTS :]
    assert torch.equal(stamps.gather(2, chosen["recalled"]), newest)
    torch.testing.assert_close(
        logits(made.backbone, made.read(chosen), PROMPT), logits(made.backbone, made.read(state), PROMPT)
    )


def test_where_all_are_read_nothing_is_searched() -> None:
    made = pool_of(backbone())
    state = written(made, *(tokens(SLOTS, seed=n) for n in range(4)))
    assert made.select(state, PROMPT[0]) is state
    assert made.read(state).slots == made.prefix_slots(state) == 1 + 4 * SLOTS


def test_a_batch_of_memories_finds_what_each_finds() -> None:
    made = pool_of(backbone(), lives=100.0)
    states = [written(made, *(tokens(SLOTS, seed=10 * n + k) for k in range(8))) for n in range(2)]
    together = made.select(stack(states), PROMPT[0])
    for row, state in enumerate(states):
        assert torch.equal(together["recalled"][row : row + 1], made.select(state, PROMPT[0])["recalled"])


def test_memories_of_other_lives_are_not_written_together() -> None:
    made = pool_of(backbone(), lives=100.0)
    state = full(made)
    other = {**state, "long_lives": state["long_lives"] + 1}
    later = {**state, "writes": state["writes"] + 1}
    keys = [made.batch_key(one, PROMPT) for one in (state, other, later)]
    assert len(set(keys)) == 3


def test_a_session_asks_with_what_its_question_finds() -> None:
    made = pool_of(backbone(), longest=8, shortest=4, lives=100.0)
    session = Session(made.backbone, ChatEncoder(tiny_tokenizer()), made)
    session.write("the old ship has a red flag and a grey cat and a tall mast and a deep hold " * 2)
    readings = [session.reading_for(question).prefix for question in ("which flag", "whose cat is that")]
    assert not torch.equal(readings[0].keys[-1], readings[1].keys[-1])
    assert session.ask("which flag", max_tokens=3) == session.fork().ask("which flag", max_tokens=3)


# ---- states of strangers ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"long_stamp": lambda part: part + 1000}, "'long_stamp' holds a slot that is newer than the last write"),
        ({"stamp": lambda part: part + 1000}, "'stamp' holds a slot that is newer than the last write"),
        ({"writes": lambda part: part + 1}, "'cached_stamp' holds 4 slots, and at most 0 wait after 12 writes"),
        ({"long_lives": lambda part: part * float("inf")}, "'long_lives' holds what is no finite number"),
        ({"long_lives": lambda part: part[:, 1:]}, "'long_lives' has shape"),
        ({"cached_address": lambda part: part[..., 1:]}, "'cached_address' has shape"),
        ({"long_keys.1": lambda part: part[:, :, 1:]}, r"'long_keys\.1' has shape"),
        ({"place": lambda part: part * 0 + 1}, "'place' holds no order of the slots"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_state_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    made = pool_of(backbone(), merge_every=4)
    state = written(made, *(tokens(SLOTS, seed=n) for n in range(11)))
    state = {**state, **{name: part[:, :, -4:] for name, part in state.items() if name.startswith("cached_")}}
    made.require_own(state, written=True)
    with pytest.raises(ValueError, match=message):
        made.require_own({**state, **{name: spoil(state[name]) for name, spoil in change.items()}}, written=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recalled": 0}, "recalled must be above 0; it is 0"),
        ({"order": "age"}, "order must be one of written, dropped; it is 'age'"),
        ({"most": 7}, r"most must be at least recalled \* slots, 8, .*they are 7 and 0"),
        ({"started": 9, "most": 8}, "they are 8 and 9"),
        ({"blocks": 1}, "blocks must be 2 or more"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pool_of(backbone(), **options)


# ---- learning ----


def episodes(count: int) -> list[Episode]:
    return [Episode((tokens(8, seed=n)[0], tokens(8, seed=50 + n)[0]), tokens(8, seed=n)[0]) for n in range(count)]


def searching(made: LongTermPool, batch: Any) -> Tensor:
    """The retriever's part of the loss, for prompts of five tokens."""
    states, _ = made.write_episodes(batch, Objective())
    rows = [made.search(state, row[None, :5])[1] for state, row in zip(states, batch.target, strict=True)]
    return made.recall_loss(states, torch.cat(rows))


def test_the_retriever_learns_to_tell_texts() -> None:
    made = LongTermPool(backbone(), **SMALL).train()
    batch = collate(episodes(3))
    optimizer = torch.optim.Adam([*made.query.parameters(), *made.address.parameters()], lr=3e-2)
    losses = []
    for _ in range(11):
        optimizer.zero_grad()
        losses.append(searching(made, batch))
        losses[-1].backward()
        optimizer.step()
    assert losses[0].item() == pytest.approx(0.693, abs=0.01)
    assert losses[-1].item() < 0.75 * losses[0].item()


def test_each_loss_trains_its_own_parts() -> None:
    made = pool_of(backbone()).train()
    searching(made, collate(episodes(2))).backward()
    taught = {name for name, part in made.named_parameters() if part.grad is not None and bool(part.grad.any())}
    assert taught == {"query.inner", "query.outer", "address.inner", "address.outer"}


def test_an_episode_alone_has_no_others_to_tell_its_text_from() -> None:
    made = pool_of(backbone()).train()
    value = made.loss(collate(episodes(1)))
    assert value.isfinite()
    assert made.loss(collate(episodes(1)), Objective(checkpoint_writes=True, every_segment=0.5)).isfinite()
