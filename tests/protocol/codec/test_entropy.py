from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from byheart.protocol.codec.entropy import (
    LARGEST,
    NARROWEST,
    WIDEST,
    LevelDecoder,
    LevelEncoder,
    costs,
    expectations,
)


def drawn(width: int, count: int, *, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng(seed).laplace(size=count) * 2.0 ** (width / 8.0)
    return (np.sign(numbers) * np.floor(np.abs(numbers) + 0.4)).astype(np.int16)


@settings(deadline=None)
@given(
    st.integers(NARROWEST, WIDEST),
    st.sampled_from([1, 2, 3, 4, 8, 64]),
    st.lists(st.integers(-LARGEST, LARGEST) | st.integers(-3, 3), min_size=1, max_size=128),
)
def test_levels_come_back(table: int, size: int, drawn: list[int]) -> None:
    levels = np.resize(np.array(drawn, np.int16), (-(-len(drawn) // size), size))
    coder = LevelEncoder()
    coder.put_uniform(np.array([3, 0], np.int32), 7)
    coder.put(levels, table)
    decoder = LevelDecoder(coder.bytes())
    assert decoder.take_uniform(2, 7).tolist() == [3, 0]
    assert decoder.take(*levels.shape, table).tolist() == levels.tolist()


@pytest.mark.parametrize("size", [1, 2, 64])
@pytest.mark.parametrize("width", [-16, 0, 8, 40])
def test_levels_take_the_bits_that_their_distribution_asks_for(width: int, size: int) -> None:
    levels = drawn(width, 25_600).reshape(-1, size)
    coder = LevelEncoder()
    coder.put(levels, width)
    said = costs()[width - NARROWEST + 1][np.abs(levels)].sum()
    assert 8 * len(coder.bytes()) == pytest.approx(said, rel=0.002, abs=64)
    shares = np.unique(levels, return_counts=True)[1] / levels.size
    entropy = -(shares * np.log2(shares)).sum() * levels.size
    assert said == pytest.approx(entropy, rel=0.03)


def test_a_code_is_the_same_on_every_machine_and_in_a_year() -> None:
    """The bytes themselves: what changed them would make every memory unreadable, with round trips none the worse."""
    coder = LevelEncoder()
    for width in range(NARROWEST, WIDEST + 1, 4):
        reach = 2 + max(0, width)
        levels = (np.arange(256 + 30) * 7919 % (2 * reach + 1) - reach).astype(np.int16)
        coder.put(levels[:256].reshape(-1, 64), width)
        coder.put(levels[256:].reshape(-1, 3), width)
    assert (len(coder.bytes()), zlib.crc32(coder.bytes())) == (4660, 660346100)


def test_a_tables_mean_is_that_of_what_it_codes() -> None:
    levels = np.abs(drawn(20, 200_000))
    assert expectations(15, 1024)[20 - NARROWEST + 1] / 1024 == pytest.approx(np.minimum(levels, 15).mean(), rel=0.05)
