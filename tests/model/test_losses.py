"""Losses that never hold all logits, against their naive twin, in values and gradients; and the optimiser's groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.model import losses as tuning
from byheart.model.backbone import Backbone
from byheart.model.losses import make_reference, next_token_loss, token_losses
from byheart.model.optimize import descend
from byheart.testing import tiny_backbone
from tests.naive import soft_targets
from tests.samples import tokens

N = 37
# family -> scale of its logits, bound on them (0 is none), whether its head has a bias
HEADS: dict[str, tuple[float, float, bool]] = {
    "llama": (1.0, 0.0, False),
    "phi": (1.0, 0.0, True),
    "granite": (0.25, 0.0, False),
    "cohere": (0.0625, 0.0, False),
    "gemma2": (1.0, 30.0, False),
}
every_head = pytest.mark.parametrize("family", list(HEADS))


@pytest.fixture(scope="module")
def opened() -> dict[str, Backbone]:
    settings: dict[str, Any] = {"phi": {"partial_rotary_factor": 0.5}}
    return {family: tiny_backbone(family, **settings.get(family, {})) for family in HEADS}


def states(own: Backbone, *, seed: int, size: float = 3.0) -> Tensor:
    return size * torch.randn(N, own.dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1, 1 << 30], ids=["many chunks", "one chunk"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "CHUNK_LOGITS", request.param)


@pytest.mark.usefixtures("_chunks")
@every_head
@pytest.mark.parametrize("kl", [None, 0.0, 0.7], ids=["no reference", "no weight", "anchored"])
def test_losses_and_gradients_are_those_of_all_logits_at_once(
    opened: dict[str, Backbone], family: str, kl: float | None
) -> None:
    own, targets = opened[family], tokens(N)[0]
    scale, cap, biased = HEADS[family]
    assert (own.head.bias is not None) == biased
    ours, theirs = states(own, seed=1).requires_grad_(), states(own, seed=1).requires_grad_()
    frozen = None if kl is None else states(own, seed=2)
    reference = None if frozen is None else make_reference(own, frozen)
    fast = token_losses(own, ours, targets, reference=reference, kl=kl or 0.0)
    naive = soft_targets.token_losses(own.head, theirs, targets, frozen, kl=kl or 0.0, scale=scale, cap=cap)
    for one, other in zip((fast.total, fast.cross_entropy, fast.divergence), naive, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    # Tokens weigh differently, so that a gradient scaled by the wrong token's weight is seen.
    weights = torch.linspace(0.1, 2.0, N)
    (fast.total * weights).sum().backward()
    (naive[0] * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert theirs.grad.abs().max() > 1e-2
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert not fast.cross_entropy.requires_grad
    assert not fast.divergence.requires_grad


@every_head
def test_an_unchanged_model_does_not_diverge(opened: dict[str, Backbone], family: str) -> None:
    own, hidden = opened[family], states(opened[family], seed=3)
    found = token_losses(own, hidden, tokens(N)[0], reference=make_reference(own, hidden), kl=1.0)
    assert found.divergence.abs().max() < 1e-5


@pytest.mark.parametrize("size", [0.01, 100.0], ids=["flat", "sharp"])
def test_extreme_logits_give_the_same(opened: dict[str, Backbone], size: float) -> None:
    own, targets = opened["llama"], tokens(N)[0]
    hidden, frozen = states(own, seed=1, size=size).requires_grad_(), states(own, seed=2, size=size)
    fast = token_losses(own, hidden, targets, reference=make_reference(own, frozen), kl=0.5)
    fast.total.sum().backward()
    exact, head = hidden.detach().double().requires_grad_(), own.head.weight.double()
    naive = soft_targets.token_losses(
        lambda x: x @ head.T,
        exact,
        targets,
        frozen.double(),
        kl=0.5,
        scale=1.0,
        cap=0.0,  # type: ignore[arg-type]
    )
    naive[0].sum().backward()
    torch.testing.assert_close(fast.total.double(), naive[0], rtol=1e-4, atol=1e-4)
    assert hidden.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-3, atol=1e-4)


@every_head
def test_bfloat16_heads_are_as_exact_as_bfloat16(family: str) -> None:
    settings: dict[str, Any] = {"partial_rotary_factor": 0.5} if family == "phi" else {}
    own, targets = tiny_backbone(family, dtype=torch.bfloat16, **settings), tokens(N)[0]
    scale, cap, _ = HEADS[family]
    hidden, frozen = states(own, seed=1, size=1.0).requires_grad_(), states(own, seed=2, size=1.0)
    fast = token_losses(own, hidden, targets, reference=make_reference(own, frozen), kl=0.7)
    fast.total.mean().backward()
    exact, head = hidden.detach().clone().requires_grad_(), own.head.float()
    naive = soft_targets.token_losses(head, exact, targets, frozen, kl=0.7, scale=scale, cap=cap)
    naive[0].mean().backward()
    torch.testing.assert_close(fast.total, naive[0], rtol=0.02, atol=0.05)
    assert hidden.grad is not None
    assert exact.grad is not None
    assert (hidden.grad - exact.grad).norm() < 0.02 * exact.grad.norm()


def test_the_next_token_loss_is_the_mean_over_all_rows() -> None:
    own, text = tiny_backbone(), tokens(9, seed=4, batch=3)
    with torch.no_grad():
        hidden = own.hidden(text)
        logits = own.model(text).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
    torch.testing.assert_close(next_token_loss(own, hidden, text), expected)


# ---- steps ----


def problem(seed: int, size: float) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,))], size * torch.randn(
        4, generator=generator
    )


def loss_of(group: list[Tensor], push: Tensor) -> Tensor:
    return (group[0] @ push).sin().sum() + group[1].pow(2).sum() * push.sum()


def naive_descent(group: list[Tensor], push: Tensor, *, steps: int, rate: float, clip: float, decay: float) -> None:
    """AdamW as Loshchilov and Hutter's algorithm 2 has it, after clipping to the group's norm."""
    first, second = ([torch.zeros_like(p) for p in group] for _ in range(2))
    for step in range(1, steps + 1):
        grads = torch.autograd.grad(loss_of(group, push), group)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        grads = [g * min(1.0, clip / (float(norm) + 1e-6)) for g in grads]
        with torch.no_grad():
            for p, g, m, v in zip(group, grads, first, second, strict=True):
                p *= 1 - rate * decay
                m.lerp_(g, 0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                p -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e9])
def test_groups_descend_as_if_each_were_alone(clip: float) -> None:
    """One has gradients a thousand times the other's, and is clipped alone."""
    problems = [problem(1, 1.0), problem(2, 1000.0)]
    groups = [[p.clone().requires_grad_() for p in group] for group, _ in problems]
    descend(
        groups,
        lambda: torch.stack([loss_of(g, push) for g, (_, push) in zip(groups, problems, strict=True)]).sum(),
        steps=5,
        learning_rate=0.01,
        clip=clip,
        weight_decay=0.1,
    )
    for ours, (start, push) in zip(groups, problems, strict=True):
        theirs = [p.clone().requires_grad_() for p in start]
        naive_descent(theirs, push, steps=5, rate=0.01, clip=clip, decay=0.1)
        for one, other, before in zip(ours, theirs, start, strict=True):
            assert (one - before).abs().max() > 1e-2
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_learning_works_where_gradients_are_off() -> None:
    group, push = problem(3, 1.0)
    leaves = [p.requires_grad_() for p in group]
    before = [p.detach().clone() for p in leaves]
    with torch.no_grad():
        descend([leaves], lambda: loss_of(leaves, push), steps=1, learning_rate=0.1)
    assert all(not torch.equal(p, old) for p, old in zip(leaves, before, strict=True))
