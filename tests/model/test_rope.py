"""Turning keys: against complex numbers, and by what makes rotary attention work."""

from __future__ import annotations

import cmath

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from byheart.model.rope import Pairing, Rotation

FREQUENCIES = (1.0, 0.31, 0.017, 1e-4)
PAIRINGS: list[Pairing] = ["half", "interleaved"]
positions = st.integers(-5000, 5000)


def keys(*, rows: int = 5, batch: int = 2, width: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, rows, width, generator=generator, dtype=torch.float64).to(dtype)


def naive_turn(key: Tensor, frequencies: tuple[float, ...], pairing: Pairing, step: int) -> Tensor:
    """One key, each pair as one complex number multiplied by e^(i * frequency * step)."""
    out = key.clone()
    pairs = len(frequencies)
    for n, frequency in enumerate(frequencies):
        a, b = (n, n + pairs) if pairing == "half" else (2 * n, 2 * n + 1)
        turned = complex(key[a], key[b]) * cmath.exp(1j * frequency * step)
        out[a], out[b] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("width", [8, 11])
def test_a_turn_multiplies_complex_pairs(pairing: Pairing, width: int) -> None:
    given_keys = keys(width=width)
    steps = torch.tensor([[3, 0, -7, 400, 1], [9, 9, 9, -1, 12]])
    turned = Rotation(FREQUENCIES, pairing).rotate(given_keys, steps)
    for b in range(2):
        for h in range(3):
            for m in range(5):
                expected = naive_turn(given_keys[b, h, m], FREQUENCIES, pairing, int(steps[b, m]))
                torch.testing.assert_close(turned[b, h, m], expected)


@pytest.mark.parametrize("pairing", PAIRINGS)
@given(there=positions, further=positions)
def test_turns_add_up_and_undo(pairing: Pairing, there: int, further: int) -> None:
    rotation, start = Rotation(FREQUENCIES, pairing), keys()
    twice = rotation.rotate(rotation.rotate(start, there), further)
    torch.testing.assert_close(twice, rotation.rotate(start, there + further), rtol=0, atol=1e-9)
    torch.testing.assert_close(rotation.rotate(rotation.rotate(start, there), -there), start, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pairing", PAIRINGS)
@given(query=positions, key=positions, moved=st.integers(-1_000_000, 1_000_000))
def test_attention_sees_differences_only(pairing: Pairing, query: int, key: int, moved: int) -> None:
    rotation = Rotation(FREQUENCIES, pairing)
    queries, kept = keys(seed=1, rows=1), keys(seed=2, rows=1)

    def score(by: int) -> Tensor:
        return (rotation.rotate(queries, query + by) * rotation.rotate(kept, key + by)).sum(-1)

    torch.testing.assert_close(score(moved), score(0), rtol=0, atol=1e-8)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_turn_by_a_million_is_as_exact_as_by_one(pairing: Pairing) -> None:
    rotation, start = Rotation(FREQUENCIES, pairing), keys(dtype=torch.float32)
    exact = Rotation(FREQUENCIES, pairing).rotate(start.double(), 1_000_003)
    torch.testing.assert_close(rotation.rotate(start, 1_000_003).double(), exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(rotation.rotate(rotation.rotate(start, 1_000_003), -1_000_003), start, rtol=0, atol=2e-6)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("rows", [7, 600, 3000])
def test_every_way_to_say_the_steps_gives_the_same(pairing: Pairing, rows: int) -> None:
    """Few steps are computed, many come from a table; one number has a cache."""
    rotation, start = Rotation(FREQUENCIES, pairing), keys(rows=rows, dtype=torch.float32)
    steps = torch.arange(rows) * 3 + 5
    each = torch.cat([rotation.rotate(start[:, :, m : m + 1], int(step)) for m, step in enumerate(steps)], dim=2)
    assert torch.equal(rotation.rotate(start, steps), each)
    assert torch.equal(rotation.rotate(start, steps.expand(2, -1)), each)
    back = rotation.rotate(start, -steps)
    torch.testing.assert_close(rotation.rotate(back, steps), start, rtol=0, atol=2e-6)
    per_row = torch.stack([steps, steps.flip(0)])
    both = rotation.rotate(start, per_row)
    assert torch.equal(both[0], each[0])
    assert torch.equal(both[1], rotation.rotate(start[1:], steps.flip(0))[0])


def test_steps_past_the_table_are_exact() -> None:
    rotation, start = Rotation(FREQUENCIES, "half"), keys(rows=600, dtype=torch.float32)
    steps = torch.arange(600) * 1000
    exact = rotation.rotate(start.double(), steps)
    torch.testing.assert_close(rotation.rotate(start, steps).double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_turn_keeps_the_type_and_its_argument(dtype: torch.dtype) -> None:
    rotation, start = Rotation(FREQUENCIES, "half"), keys(dtype=dtype)
    before = start.clone()
    assert rotation.rotate(start, 12).dtype == dtype
    assert rotation.rotate(start, torch.arange(5)).dtype == dtype
    assert torch.equal(start, before)


def test_bfloat16_is_rounded_once() -> None:
    rotation, start = Rotation(FREQUENCIES, "half"), keys(rows=200, dtype=torch.bfloat16)
    exact = rotation.rotate(start.double(), 777).to(torch.bfloat16)
    turned = rotation.rotate(start, 777)
    assert (turned == exact).float().mean() > 0.99
    torch.testing.assert_close(turned, exact, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 5, torch.arange(5)])
def test_a_layer_without_positions_keeps_its_keys(steps: int | Tensor) -> None:
    start = keys()
    assert Rotation((), "none").rotate(start, steps) is start


def test_no_step_is_no_turn() -> None:
    start = keys()
    assert Rotation(FREQUENCIES, "half").rotate(start, 0) is start


def test_what_was_turned_in_inference_mode_can_be_learned_from_later() -> None:
    rotation = Rotation((0.77, 0.123), "half")
    steps = torch.arange(700)
    with torch.inference_mode():
        rotation.rotate(keys(rows=700, width=4), steps)
        rotation.rotate(keys(width=4), 41)
    for by in (41, torch.arange(5)):
        start = keys(width=4).requires_grad_()
        rotation.rotate(start, by).pow(2).sum().backward()
        torch.testing.assert_close(start.grad, 2 * start.detach())
    start = keys(rows=700, width=4).requires_grad_()
    rotation.rotate(start, steps).pow(2).sum().backward()
    torch.testing.assert_close(start.grad, 2 * start.detach())


@pytest.mark.parametrize(("pairing", "slow"), [("half", [3, 7, 8]), ("interleaved", [6, 7, 8]), ("none", [*range(9)])])
def test_slow_components_hardly_turn(pairing: Pairing, slow: list[int]) -> None:
    found = Rotation(FREQUENCIES, pairing).slow(9, steps=60)
    assert found.nonzero().flatten().tolist() == slow
    start = keys(width=9)
    turned = Rotation(FREQUENCIES, pairing).rotate(start, 60)
    assert (turned - start).abs().amax((0, 1, 2))[found].max() < 0.1
