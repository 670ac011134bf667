"""MemoryLLM's training, on tiny models: what a target reads, where gradients go, and what the pool holds afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from byheart.errors import UsageError
from byheart.methods.latent_pool import LatentPool
from byheart.methods.window import Window
from byheart.protocol.carried_pool import add_slots
from byheart.protocol.episode import Batch, Episode, collate
from byheart.protocol.objective import Objective
from tests.samples import backbone, stir, tokens

SLOTS, BLOCKS = 4, 3
WHOLE, ALONE = Objective(carried=True, full_pool=1.0), Objective(carried=True, full_pool=0.0)


def pool(**options: object) -> LatentPool:
    made = LatentPool(backbone(), slots=SLOTS, blocks=BLOCKS, longest=16, shortest=2, rank=2, **options)
    stir(made)
    return made.train()


def batch(segments: int, *, seed: int = 0, rows: int = 1) -> Batch:
    texts = [tuple(tokens(8, seed=seed + 10 * row + n)[0] for n in range(segments)) for row in range(rows)]
    return collate([Episode(each, tokens(6, seed=seed + 99 + row)[0]) for row, each in enumerate(texts)])


def filled(made: LatentPool, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made.fill(torch.randn(len(made.backbone.layers), SLOTS * BLOCKS, made.backbone.dim, generator=generator))
    assert made.initial is not None
    return made.initial


def gradients(made: LatentPool) -> set[str]:
    return {
        name.split(".")[0] for name, one in made.named_parameters() if one.grad is not None and one.grad.abs().sum()
    }


def step(made: LatentPool, example: Batch, objective: Objective) -> Tensor:
    torch.manual_seed(0)
    loss = made.loss(example, objective)
    loss.backward()
    return loss


def test_one_segment_is_read_alone_with_gradients_through_its_write() -> None:
    made = pool()
    old = filled(made)
    example = batch(1)
    loss = step(made, example, ALONE)
    assert gradients(made) == {"first", "mark", "writing", "reading"}
    # The target sees the first slot and the new ones, which were read after the pool's newest.
    with torch.no_grad():
        state = made.state_of(old[:, -SLOTS:])
        alone = made.state_of(made.dry_run(state, example.segments[0])[0])
        seen = made.hidden_of([alone], example.target)
        logits = made.backbone.logits(seen[0, :-1])
        expected = torch.nn.functional.cross_entropy(logits, example.target[0, 1:])
    torch.testing.assert_close(loss.detach(), expected)


def test_or_the_whole_pool_is_read_without_gradients_through_the_write() -> None:
    made = pool()
    filled(made)
    example = batch(1)
    loss = step(made, example, WHOLE)
    # What reads is learned, what writes is not.
    assert gradients(made) == {"first", "reading"}
    assert made.initial is not None
    with torch.no_grad():
        seen = made.hidden_of([made.state_of(made.initial)], example.target)
        expected = torch.nn.functional.cross_entropy(made.backbone.logits(seen[0, :-1]), example.target[0, 1:])
    torch.testing.assert_close(loss.detach(), expected)


def test_several_segments_never_have_gradients_and_follow_one_another() -> None:
    made = pool()
    old = filled(made)
    example = batch(2)
    step(made, example, ALONE)
    assert gradients(made) == {"first", "reading"}
    with torch.no_grad():
        first = made.dry_run(made.state_of(old[:, -SLOTS:]), example.segments[:, 0])[0]
        second = made.dry_run(made.state_of(first), example.segments[:, 1])[0]
    assert made.initial is not None
    torch.testing.assert_close(made.initial[:, -SLOTS:], second)
    # Some of the first segment's slots went when the second was written.
    left = [row for row in first[0] if any(torch.allclose(row, other) for other in made.initial[0])]
    assert len(left) <= SLOTS


def test_all_that_a_batch_wrote_is_carried_on_in_a_full_pool() -> None:
    made = pool()
    assert made.initial is None
    step(made, batch(1, rows=2), WHOLE)
    assert made.initial is not None
    # As published, the first text fills the pool.
    assert made.initial.shape == (len(made.backbone.layers), SLOTS * BLOCKS, made.backbone.dim)
    before = made.initial
    step(made, batch(1, seed=50), WHOLE)
    after = made.initial
    shared = sum(any(torch.equal(row, other) for other in before[0]) for row in after[0])
    assert shared == SLOTS * (BLOCKS - 1)
    assert not after.requires_grad


def test_a_target_without_segments_reads_the_pool_as_it_is() -> None:
    made = pool()
    old = filled(made)
    whole = batch(1)
    again = replace(whole, segments=whole.segments[:, :0], mask=whole.mask[:, :0])
    step(made, again, ALONE)
    assert made.initial is not None
    assert torch.equal(made.initial, old)
    assert gradients(made) == {"first", "reading"}
    with pytest.raises(UsageError, match="Nothing was written into this pool yet"):
        pool().loss(again, ALONE)


@pytest.mark.parametrize("forget", ["layer", "shared"])
def test_slots_are_dropped_by_chance_in_each_layer_or_in_all_alike(forget: str) -> None:
    old = torch.arange(12.0).view(1, 12, 1).expand(3, -1, 2)
    torch.manual_seed(1)
    found = add_slots(old, torch.full((3, 4, 2), 99.0), 12, shared=forget == "shared")
    assert found.shape == (3, 12, 2)
    assert (found[:, -4:] == 99).all()
    kept = found[:, :8, 0]
    assert (kept.diff(dim=1) > 0).all()
    assert torch.equal(kept[0], kept[1]) == (forget == "shared")
    few = add_slots(None, torch.arange(5.0).view(1, 5, 1), 12, shared=True)
    assert few.flatten().tolist() == [3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4]


def test_what_cannot_be_carried_is_refused() -> None:
    for objective in (replace(WHOLE, teacher=1.0), replace(WHOLE, every_segment=0.5)):
        with pytest.raises(UsageError, match="With carried only targets are learned"):
            pool().loss(batch(1), objective)
    with pytest.raises(UsageError, match="method 'window' has no pool to carry"):
        Window(backbone()).loss(batch(1), WHOLE)
