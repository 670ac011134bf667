"""Writing in slices makes what writing at once does: a piece is only read with pauses."""

from __future__ import annotations

import pytest
import torch

from byheart.methods import build
from byheart.model.slices import run_through
from tests.samples import OPTIONS, backbone, hooks, method, same, tokens, written

LONGEST = 5
CASES = [
    *("full", "full 8 bits", "window", "every-kth", "mean-pooled", "key-norm", "attention-score", "latent-pool"),
    *("compressed-kv", "retrieval", "last-ffn"),
]


@pytest.mark.parametrize("case", CASES)
def test_slices_make_the_state_of_a_write(case: str) -> None:
    made = method(case)
    before = written(made, tokens(20, seed=1))
    text = tokens(27, seed=2)
    pauses = []
    slices = made.write_in_slices(before, text, longest=LONGEST)
    while True:
        try:
            pauses.append(next(slices))
        except StopIteration as end:
            state = end.value
            break
        assert not hooks(backbone())
    assert pauses
    same(state, written(made, text, start=before), within=1e-4)


@pytest.mark.parametrize("case", ["full", "compact", "window", "attention-score", "mean-pooled"])
def test_no_slice_is_longer_than_asked_but_where_all_is_observed(case: str) -> None:
    made = method(case)
    pauses = [count for count in made.write_in_slices({}, tokens(30, seed=3), longest=LONGEST) if count]
    observed = OPTIONS[case].get("observed", 0)
    assert max(pauses) <= LONGEST + observed
    assert sum(pauses) == 30


@pytest.mark.parametrize("name", ["full", "window"])
def test_a_write_that_does_not_pause_reads_a_piece_at_once_with_the_receipt_before_it(name: str) -> None:
    own, receipt = backbone(), torch.tensor([[5, 6, 7]])
    made = build(name, own, chunk_tokens=16, opening=[4], receipt=receipt[0].tolist())
    text = torch.cat([torch.tensor([[4]]), tokens(8, seed=6), receipt], dim=1)
    state = written(made, text)
    read: list[int] = []
    hook = own.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        written(made, torch.cat([tokens(16, seed=7), receipt], dim=1), start=state)
    finally:
        hook.remove()
    assert read == [3 + 16]


def test_what_is_coded_in_slices_reads_as_what_is_coded_at_once() -> None:
    made = method("compact").apart()
    text = tokens(30, seed=4)
    sliced, whole = run_through(made.write_in_slices({}, text, longest=LONGEST)), written(made, text)
    assert all(map(torch.equal, (sliced["runs"], sliced["first"]), (whole["runs"], whole["first"])))
    readings = [method("compact").apart().read(state).prefix for state in (sliced, whole)]
    assert readings[0] is not None
    assert readings[1] is not None
    for ours, theirs in zip(readings[0].values, readings[1].values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


def test_a_write_that_is_given_up_leaves_the_model_and_the_memory_as_they_were() -> None:
    made = method("compact").apart()
    slices = made.write_in_slices({}, tokens(30, seed=5), longest=LONGEST)
    next(slices)
    slices.close()
    assert not hooks(backbone())
    assert made.apart() is not made
    assert method("full").apart() is method("full")
