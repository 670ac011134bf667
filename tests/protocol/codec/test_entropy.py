from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from byheart.protocol.codec.entropy import LARGEST, NARROWEST, WIDEST, LevelDecoder, LevelEncoder, costs, expectations


def drawn(widths: np.ndarray, *, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng(seed).laplace(size=widths.shape) * 2.0 ** (widths / 8.0)
    return (np.sign(numbers) * np.floor(np.abs(numbers) + 0.4)).astype(np.int16)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-LARGEST, LARGEST), st.integers(NARROWEST, WIDEST)), min_size=1, max_size=60))
def test_levels_come_back(pairs: list[tuple[int, int]]) -> None:
    levels, widths = np.array([pair[0] for pair in pairs], np.int16), np.array([pair[1] for pair in pairs], np.int8)
    coder = LevelEncoder()
    coder.put_uniform(np.array([3, 0], np.int32), 7)
    coder.put(levels, widths)
    decoder = LevelDecoder(coder.bytes())
    assert decoder.take_uniform(2, 7).tolist() == [3, 0]
    assert decoder.take(widths).tolist() == levels.tolist()


@pytest.mark.parametrize("width", [-16, 0, 8, 40])
def test_levels_take_the_bits_that_their_distribution_asks_for(width: int) -> None:
    widths = np.full(20_000, width, np.int8)
    levels = drawn(widths)
    coder = LevelEncoder()
    coder.put(levels, widths)
    said = costs()[width - NARROWEST + 1][np.abs(levels)].sum()
    assert 8 * len(coder.bytes()) == pytest.approx(said, rel=0.002, abs=64)
    shares = np.unique(levels, return_counts=True)[1] / len(levels)
    entropy = -(shares * np.log2(shares)).sum() * len(levels)
    assert said == pytest.approx(entropy, rel=0.03)


def test_what_is_under_the_grid_is_not_coded() -> None:
    widths = np.full(5, NARROWEST - 1, np.int8)
    coder = LevelEncoder()
    coder.put(np.ones(5, np.int16), widths)
    assert coder.bytes() == b""
    assert LevelDecoder(b"").take(widths).tolist() == [0] * 5


def test_a_tables_mean_is_that_of_what_it_codes() -> None:
    levels = np.abs(drawn(np.full(200_000, 20, np.int8)))
    assert expectations(15, 1024)[20 - NARROWEST + 1] / 1024 == pytest.approx(np.minimum(levels, 15).mean(), rel=0.05)
