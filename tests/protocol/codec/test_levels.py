from __future__ import annotations

import numpy as np
import pytest
import torch

from byheart.protocol.codec.entropy import LARGEST, NARROWEST, LevelDecoder, LevelEncoder
from byheart.protocol.codec.levels import (
    MOST_SHIFT,
    UNITS,
    Grid,
    Shifts,
    count_bits,
    finest_step,
    put_levels,
    shifts_of,
    take_levels,
    to_levels,
)

WIDTHS = torch.arange(600, -400, -5, dtype=torch.int32)


def components(tokens: int, *, loud: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    sign = torch.where(torch.rand(tokens, len(WIDTHS), generator=generator) < 0.5, -1.0, 1.0)
    size = -torch.rand(tokens, len(WIDTHS), generator=generator).clamp(min=1e-6).log()
    each = torch.where(torch.arange(tokens) % 2 == 0, loud, 1 / loud)
    return sign * size * each[:, None] * 2.0 ** (WIDTHS / UNITS)


def unshifted(tokens: int) -> Shifts:
    return np.zeros(tokens, np.int16)


def coded(y: torch.Tensor, step: int, shifts: Shifts | None = None) -> tuple[int, torch.Tensor]:
    """The bytes of components (T, C), and what comes back."""
    shifts = unshifted(len(y)) if shifts is None else shifts
    grid, coder = Grid.of(WIDTHS, step, shifts), LevelEncoder()
    put = put_levels(coder, y, step, grid)
    back = torch.zeros(y.shape)
    found, taken = take_levels(LevelDecoder(coder.bytes()), step, grid)
    assert taken == put
    back[:, : grid.coded] = found
    return len(coder.bytes()), back


def test_components_come_back_within_a_step() -> None:
    y = components(200)
    for step in (-300, 0, 300):
        _, back = coded(y, step)
        assert (back - y)[:, :60].abs().max() <= 2 ** (step / UNITS)
        assert (back - y).abs().mean() < 0.3 * 2 ** (step / UNITS)


def test_a_finer_step_costs_more_and_loses_less() -> None:
    y = components(300)
    made = [coded(y, step) for step in (-256, 0, 256)]
    sizes, losses = [size for size, _ in made], [float((back - y).pow(2).mean()) for _, back in made]
    assert sizes == sorted(sizes, reverse=True)
    assert losses == sorted(losses)


def test_the_mean_of_a_level_is_nearer_than_its_middle() -> None:
    y, step = components(2000), 256
    _, back = coded(y, step)
    levels = to_levels(y, step, unshifted(len(y)))
    middle = levels.sign() * (levels.abs() - 0.1) * 2 ** (step / UNITS)
    nonzero = (levels != 0) & (back != 0)
    assert ((back - y)[nonzero] ** 2).mean() < 0.98 * ((middle - y)[nonzero] ** 2).mean()


def test_loud_and_quiet_tokens_are_told_apart() -> None:
    even, uneven = components(200), components(200, loud=3.0)
    grid = Grid.of(WIDTHS, 0, unshifted(200))
    for y, least, most in ((even, 0.97, 1.03), (uneven, 0.7, 0.95)):
        size, _ = coded(y, 0)
        assert least < 8 * size / count_bits(y, 0, grid) < most


def test_no_level_is_cut_off_at_the_finest_step() -> None:
    y = 1e4 * components(50)
    none = unshifted(len(y))
    step = finest_step(y, none)
    assert int(to_levels(y, step, none).abs().max()) <= LARGEST
    assert (to_levels(y, step, none) * 2 ** (step / UNITS) - y).abs().max() <= 2 ** (step / UNITS)


def test_a_token_on_which_more_depends_loses_less() -> None:
    y = components(400)
    shifts = np.where(np.arange(400) < 200, 8, -8).astype(np.int16)
    (even, plain), (uneven, shifted) = coded(y, 0), coded(y, 0, shifts)
    assert abs(uneven / even - 1) < 0.1
    first, rest = (
        (shifted - y)[part].abs().mean() / (plain - y)[part].abs().mean() for part in (slice(200), slice(200, 400))
    )
    assert first < 0.65
    assert rest > 1.4


def test_fine_tokens_have_components_that_others_do_not() -> None:
    one, two = (Grid.of(WIDTHS, 400, shifts) for shifts in (unshifted(2), np.array([0, 16], np.int16)))
    assert one.coded < two.coded
    last = two.blocks[-1]
    plain, fine = two.tables(last).tolist()
    assert plain < NARROWEST <= fine
    coder = LevelEncoder()
    put_levels(coder, torch.full((2, len(WIDTHS)), 1e3), 400, two)
    found, _ = take_levels(LevelDecoder(coder.bytes()), 400, two)
    assert (found[0, last.components] == 0).all()
    assert (found[1, last.components] > 0).all()


@pytest.mark.parametrize("components", [1, 7, 100, 2816])
def test_blocks_hold_every_component_once(components: int) -> None:
    grid = Grid.of(torch.zeros(components, dtype=torch.int32), 0, unshifted(3))
    assert [place for block in grid.blocks for place in range(block.start, block.stop)] == [*range(components)]


def test_another_level_has_another_checksum() -> None:
    y, grid = components(5), Grid.of(WIDTHS, 0, unshifted(5))
    other = y.clone()
    other[3, 0] += 2.0
    assert put_levels(LevelEncoder(), y, 0, grid) != put_levels(LevelEncoder(), other, 0, grid)


def test_shifts_are_half_of_what_depends_on_a_token() -> None:
    assert shifts_of(torch.tensor([0.0, 2.0, 1.0])).tolist() == [-4, 4, 0]
    assert shifts_of(torch.tensor([-50.0, 50.0])).tolist() == [-MOST_SHIFT, MOST_SHIFT]
    assert shifts_of(torch.tensor([7.0])).tolist() == [0]


def test_without_components_nothing_is_coded() -> None:
    grid, coder = Grid.of(WIDTHS, 9000, unshifted(3)), LevelEncoder()
    assert grid.coded == 0
    put_levels(coder, components(3), 9000, grid)
    found, _ = take_levels(LevelDecoder(coder.bytes()), 9000, grid)
    assert found.shape == (3, 0)
