"""Low-rank updates at chosen tokens only, against a full product multiplied by a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from byheart.errors import UsageError
from byheart.model.backbone import Backbone
from byheart.model.lora import LoRA
from byheart.model.reading import Reading
from byheart.testing import tiny_backbone
from tests.samples import ALL_FAMILIES, backbone, hooks, stir, tokens

TEXT = tokens(9, seed=1, batch=2)
GATES = [None, slice(6, 9), slice(0, 1), slice(2, 5), slice(-3, None), slice(4, 4)]


def updated(own: Backbone, *, rank: int = 3) -> LoRA:
    made = LoRA(own, [path for index in range(len(own.layers)) for path in own.linears(index)], rank=rank, alpha=6.0)
    stir(made)
    return made


def naive_hidden(own: Backbone, made: LoRA, mask: Tensor) -> Tensor:
    """Final hidden states, the update computed at every token and multiplied by ``mask`` (T,)."""
    handles = [
        own.linear(path).register_forward_hook(
            lambda module, args, out, d=down, u=up: (
                out + mask[:, None] * (args[0].float() @ d.T @ u.T * 6.0 / d.shape[0]).to(out.dtype)
            )
        )
        for path, down, up in zip(made.paths, made.down, made.up, strict=True)
    ]
    try:
        return own.hidden(TEXT)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_only_gated_tokens_are_updated(family: str, gate: slice | None) -> None:
    own = backbone(family)
    made, mask = updated(own), torch.zeros(9)
    mask[gate if gate is not None else slice(None)] = 1.0
    with torch.no_grad():
        plain = own.hidden(TEXT)
        with made.active(own, gate=gate):
            ours = own.hidden(TEXT)
        torch.testing.assert_close(ours, naive_hidden(own, made, mask), rtol=0, atol=1e-4)
    first = int(mask.argmax()) if mask.any() else 9
    torch.testing.assert_close(ours[:, :first], plain[:, :first], rtol=0, atol=0)
    assert first == 9 or (ours[:, first:] - plain[:, first:]).abs().max() > 1e-2
    assert hooks(own) == []


@pytest.mark.parametrize("gate", GATES[:4], ids=str)
def test_gradients_are_those_of_the_masked_product(gate: slice | None) -> None:
    own, mask = backbone(), torch.zeros(9)
    mask[gate if gate is not None else slice(None)] = 1.0
    ours, theirs = updated(own), updated(own)
    with ours.active(own, gate=gate):
        own.hidden(TEXT).sin().sum().backward()
    naive_hidden(own, theirs, mask).sin().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
    assert max(float(p.grad.abs().max()) for p in ours.parameters() if p.grad is not None) > 1e-2


def test_an_untrained_update_changes_nothing() -> None:
    own = backbone()
    made = LoRA(own, ["layers.0.mlp.up_proj"], rank=2, alpha=4.0)
    with torch.no_grad(), made.active(own):
        changed = own.hidden(TEXT)
    with torch.no_grad():
        assert torch.equal(changed, own.hidden(TEXT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reading_carries_the_update(dtype: torch.dtype) -> None:
    own = backbone("llama", dtype)
    made = updated(own)
    with torch.no_grad():
        with made.active(own):
            expected = own.hidden(TEXT)
        with own.reading([Reading(deltas=made.deltas(2), batch=2)]):
            ours = own.hidden(TEXT)
    within = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=within)


def test_an_update_is_kept_and_computed_in_float32() -> None:
    own = tiny_backbone(dtype=torch.bfloat16)
    made = updated(own)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}
    with torch.no_grad(), made.active(own, gate=slice(2, 5)):
        assert own.hidden(TEXT).dtype == torch.bfloat16


def test_seeds_start_differently_and_repeat() -> None:
    own = backbone()
    starts = [LoRA(own, ["layers.0.mlp.up_proj"], rank=2, alpha=4.0, seed=seed).down[0] for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert starts[0].abs().max() <= 32**-0.5


def test_hooks_go_when_the_body_fails() -> None:
    own = backbone()
    made = updated(own)
    with pytest.raises(ZeroDivisionError), made.active(own):
        raise ZeroDivisionError
    assert hooks(own) == []


def test_a_wrong_path_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"no module 'layers\.0\.mlp\.side_proj'"):
        LoRA(backbone(), ["layers.0.mlp.side_proj"], rank=2, alpha=4.0)
