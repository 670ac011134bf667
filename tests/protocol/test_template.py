"""A state file whose hash fits, and whose tensors its method could not have made, is refused before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from byheart.errors import CorruptStateError
from byheart.protocol.state import State
from byheart.protocol.state_file import save
from byheart.protocol.template import length, require_template
from byheart.session.session import Session
from byheart.text.encoder import ChatEncoder
from tests.conftest import tiny_tokenizer
from tests.samples import METHODS, VARIANTS, backbone, method

Change: TypeAlias = Callable[[Tensor], Tensor | None]


def session(case: str) -> Session:
    return Session(backbone(), ChatEncoder(tiny_tokenizer()), method(case))


@cache
def read(case: str) -> Session:
    made = session(case)
    made.write("The cat is called Muck. It sleeps in a shoe box.")
    return made


def kind(wanted: bool, change: Change) -> Change:
    """A change of floating-point tensors alone, or of integers alone."""
    return lambda tensor: change(tensor) if tensor.is_floating_point() == wanted and tensor.numel() else None


def counts(change: Change) -> Change:
    """A change of integers that are no codes of slots: any byte is one."""

    def changed(tensor: Tensor) -> Tensor | None:
        is_code = tensor.dtype == torch.uint8 and tensor.ndim == 4
        return None if is_code or tensor.is_floating_point() else change(tensor)

    return changed


def spoilt_value(value: float) -> Change:
    def change(tensor: Tensor) -> Tensor:
        spoilt = tensor.clone()
        spoilt.view(-1)[tensor.numel() // 2] = value
        return spoilt

    return change


# What is done to one tensor of a state; None where it cannot be.
TENSORS: dict[str, Change] = {
    "two sessions": lambda tensor: torch.cat([tensor, tensor]),
    "no session": lambda tensor: tensor[:0],
    "flat": lambda tensor: tensor.reshape(-1) if tensor.ndim > 1 else None,
    "one dimension more": lambda tensor: tensor[..., None],
    "a scalar": lambda tensor: tensor.reshape(-1)[0] if tensor.numel() else None,
    "turned": lambda tensor: tensor.mT if tensor.ndim > 1 and tensor.mT.shape != tensor.shape else None,
    "wider": lambda tensor: torch.cat([tensor, tensor], -1) if tensor.ndim > 2 and tensor.numel() else None,
    "narrower": lambda tensor: tensor[..., :-1] if tensor.ndim > 2 and tensor.numel() else None,
    "more heads": lambda tensor: torch.cat([tensor, tensor], 1) if tensor.ndim > 3 else None,
    "fewer slots": lambda tensor: tensor[:, :, :-1] if tensor.ndim > 3 and tensor.numel() else None,
    "in float64": kind(True, Tensor.double),
    "in float16": kind(True, Tensor.half),
    "rounded": kind(True, Tensor.long),
    "as numbers": kind(False, Tensor.float),
    "as bytes": kind(False, lambda tensor: tensor.to(torch.uint8)),
    "not a number": kind(True, spoilt_value(float("nan"))),
    "infinite": kind(True, spoilt_value(float("-inf"))),
    "negative": counts(spoilt_value(-1)),
    "huge": counts(lambda tensor: torch.full_like(tensor, torch.iinfo(tensor.dtype).max)),
}
# What is done to a whole state; an equal one where it cannot be.
STATES: dict[str, Callable[[State], State]] = {
    "no tensors": lambda state: {},
    "one tensor more": lambda state: {**state, "more": torch.ones(1)},
    "two sessions in all": lambda state: {name: torch.cat([tensor, tensor]) for name, tensor in state.items()},
    "a layer more": lambda state: (
        {**state, **{f"{part}.3": state[f"{part}.0"] for part in ("keys", "values")}} if "keys.0" in state else {}
    ),
    "too many slots": lambda state: (
        {
            name: torch.cat([tensor] * 600, 2) if name.startswith(("keys", "values")) else tensor
            for name, tensor in state.items()
        }
        if "keys.0" in state
        else {}
    ),
}


def accept(made: Session, path: Path, what: str) -> None:
    made.load(path)
    pytest.fail(f"accepted: {what}")


def _is_same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor.dtype == other.dtype and torch.equal(tensor, other)


def wrong(state: State) -> Mapping[str, State]:
    """Many states that no method makes, from one that a method made."""
    found = {what: change(state) for what, change in STATES.items()}
    for name, tensor in sorted(state.items())[:: max(1, len(state) // 4)]:
        found |= {
            f"{what}: {name}": {**state, name: changed}
            for what, change in TENSORS.items()
            if (changed := change(tensor)) is not None and not _is_same(changed, tensor)
        }
        others = {other: kept for other, kept in state.items() if other != name}
        found |= {f"without {name}": others, f"{name} by another name": {**others, f"{name}.0": tensor}}
    return found


@pytest.mark.parametrize("case", [*METHODS, *VARIANTS])
def test_what_a_method_could_not_have_made_is_refused(case: str, tmp_path: Path) -> None:
    made, other, path = read(case), session(case), tmp_path / "one.state"
    before, header = other.state, replace(made.header, slots=made.reading.slots)
    cases = {**wrong(made.state), "other slots": made.state}
    for what, state in cases.items():
        save(path, state, replace(header, slots=header.slots + (what == "other slots")))
        # A code is decoded, and then found to be another one.
        said = f"(holds no state of {made.method.name}|cannot be read): .*restore it"
        with pytest.raises(CorruptStateError, match=rf"one\.state' {said}"):
            accept(other, path, what)
    assert len(cases) >= 15
    assert other.state is before
    save(path, made.state, header)
    other.load(path)
    assert other.reading.slots == made.reading.slots


def test_a_token_that_the_model_does_not_know_is_refused() -> None:
    state = {"tokens": read("retrieval").state["tokens"].clone()}
    state["tokens"][0, 3] = 128
    with pytest.raises(ValueError, match="tensor 'tokens' holds 128, and the model knows tokens below 128"):
        method("retrieval").require_own(state, written=True)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_range_begins_before_it_ends(bits: int) -> None:
    state = dict(read(f"window {bits} bits").state)
    state["value_ranges.1"] = state["value_ranges.1"].flip(-1)
    with pytest.raises(ValueError, match=r"tensor 'value_ranges\.1' holds a range that ends before it begins"):
        method(f"window {bits} bits").require_own(state, written=True)


def test_slots_of_a_pool_have_an_order() -> None:
    state = dict(read("latent-pool").state)
    state["place"] = state["place"].clamp(min=2)
    with pytest.raises(ValueError, match="tensor 'place' holds no order of the slots"):
        method("latent-pool").require_own(state, written=True)


def test_a_memory_that_was_written_is_not_as_empty_as_a_new_one() -> None:
    for case in ("full", "window", "retrieval", "latent-pool", "compressed-kv", "last-ffn"):
        with pytest.raises(ValueError, match="tensor"):
            method(case).require_own(method(case).init(), written=True)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "tensor 'a' is missing"),
        ({"a": torch.ones(1, 3), "b": torch.ones(1)}, "tensor 'b' is none of its"),
        ({"a": torch.ones(1, 4)}, r"tensor 'a' has shape \(1, 4\), and must have \(1, 3\)"),
        ({"a": torch.ones(1, 3).half()}, r"tensor 'a' is torch\.float16, and must be torch\.float32"),
        ({"a": torch.tensor([[1, float("nan"), 2]])}, "tensor 'a' holds what is no finite number"),
    ],
)
def test_what_is_wrong_is_said(state: State, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_template(state, {"a": torch.zeros(1, 3)})


def test_a_length_is_within_bounds() -> None:
    state = {"a": torch.zeros(1, 2, 7)}
    assert [length(state, "a", 2, most=most) for most in (9, 5)] == [7, 5]
    assert [length(state, name, 3, most=9, least=least) for name, least in (("a", 0), ("b", 2))] == [0, 2]
