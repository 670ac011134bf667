"""Episodes, batches of them, and what a method loses on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from byheart.errors import UsageError
from byheart.model.losses import token_losses
from byheart.protocol.episode import Batch, Episode, collate
from byheart.protocol.method import Method
from byheart.protocol.objective import Objective
from tests.samples import backbone, fresh, tokens

TYPES = [
    "compressed-kv",
    "compressed-kv mean",
    "compressed-kv alone sink",
    "compressed-kv mean alone sink",
    "compressed-kv first",
    "compressed-kv everywhere",
    "compressed-kv mean first sink",
]


def episode(*lengths: int, target: int = 9, answer: int = 1, seed: int = 0) -> Episode:
    segments = tuple(tokens(length, seed=seed + n)[0] for n, length in enumerate(lengths))
    return Episode(segments, tokens(target, seed=seed + 50)[0], answer)


def batch(segments: int = 3) -> Batch:
    """Two ragged episodes."""
    lengths = ([9, 4, 6], [5, 9, 7])
    episodes = [episode(*each[:segments], target=8 - n, answer=1 + n, seed=10 * n) for n, each in enumerate(lengths)]
    return collate(episodes)


def test_segments_are_padded_on_the_left_and_targets_on_the_right() -> None:
    made = collate([episode(2, 4, target=4, answer=2), episode(4, 3, target=3)])
    assert made.mask.int().tolist() == [[[0, 0, 1, 1], [1, 1, 1, 1]], [[1, 1, 1, 1], [0, 1, 1, 1]]]
    assert made.labels.int().tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]
    assert torch.equal(made.rows(0)[0][0], episode(2).segments[0])
    assert torch.equal(made.target[1, :3], episode(4, 3, target=3).target)


def test_joined_is_the_running_text_and_says_where_each_column_stands() -> None:
    first, second = episode(2, 4, target=4), episode(4, 3, target=3, seed=5)
    made = collate([first, second])
    text, places = made.joined()
    for row, each in zip(text, (first, second), strict=True):
        whole = torch.cat([*each.segments, each.target])
        assert torch.equal(row[: len(whole)], whole)
    columns = torch.cat([made.segments.flatten(1), made.target], dim=1)
    real = torch.cat([made.mask.flatten(1), torch.ones_like(made.labels)], dim=1)
    assert torch.equal(text.gather(1, places)[real], columns[real])


def test_episodes_that_cannot_be_stacked_are_refused() -> None:
    with pytest.raises(UsageError, match=r"equally many segments.*\[1, 2\]"):
        collate([episode(3), episode(3, 4)])
    with pytest.raises(UsageError, match="answer is 9 of 9 tokens"):
        collate([episode(3, answer=9)])
    with pytest.raises(UsageError, match="text in every segment"):
        collate([episode(3, 0)])


def losses(
    made: Method, loss: Callable[..., Tensor], given: Batch, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its gradients; zeros where nothing reaches a parameter."""
    value = loss(given, objective)
    value.backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in made.named_parameters()}
    made.zero_grad()
    return value.detach(), gradients


@pytest.mark.parametrize("case", TYPES)
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("objective", [Objective(), Objective(teacher=0.7), Objective(teacher=0.7, every_segment=0.3)])
def test_one_pass_and_segment_by_segment_lose_the_same(case: str, segments: int, objective: Objective) -> None:
    if "alone" in case and objective.every_segment:
        pytest.skip("refused, see below")
    made = fresh(case, backbone()).train()
    value, gradients = losses(made, made.loss, batch(segments), objective)
    sequential, expected = losses(made, partial(Method.loss, made), batch(segments), objective)
    torch.testing.assert_close(value, sequential, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=f"in {name}: {{}}".format)


@pytest.mark.parametrize("case", ["latent-pool lora", "latent-pool kept", "compressed-kv first"])
def test_checkpointed_writes_have_the_same_gradients(case: str) -> None:
    made = fresh(case, backbone()).train()
    objective = Objective(teacher=0.7, every_segment=0.3)
    value, gradients = losses(made, partial(Method.loss, made), batch(), objective)
    again, recomputed = losses(made, made.loss, batch(), replace(objective, checkpoint_writes=True))
    torch.testing.assert_close(again, value)
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-7, msg=f"in {name}: {{}}".format)


def test_every_segment_is_refused_where_segments_do_not_see_the_memory() -> None:
    with pytest.raises(UsageError, match="recurrent"):
        fresh("compressed-kv alone sink", backbone()).loss(batch(), Objective(every_segment=0.5))


def test_the_loss_is_the_mean_over_supervised_tokens() -> None:
    own, made = backbone(), fresh("nothing", backbone())
    given = batch()
    hidden = own.hidden(given.target)[:, :-1][given.labels[:, 1:]]
    expected = token_losses(own, hidden, given.target[given.labels]).total.mean()
    torch.testing.assert_close(made.loss(given), expected)


def test_a_memory_that_keeps_everything_has_nothing_to_learn_from_its_teacher() -> None:
    made = fresh("full", backbone())
    torch.testing.assert_close(made.loss(batch(), Objective(teacher=3.0)), made.loss(batch()), rtol=1e-5, atol=1e-5)


def test_supervising_every_segment_adds_the_text_after_the_first() -> None:
    own, made = backbone(), fresh("full", backbone())
    one = episode(4, 5, target=6)
    given = collate([one])
    text = torch.cat([*one.segments, one.target])[None]
    states = own.hidden(text)[0]
    inside = [5, 6, 7, 8]
    expected = token_losses(own, states[[i - 1 for i in inside]], text[0, inside]).total.mean()
    difference = made.loss(given, Objective(every_segment=0.5)) - made.loss(given)
    torch.testing.assert_close(difference, 0.5 * expected, rtol=1e-4, atol=1e-5)
