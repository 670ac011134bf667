from __future__ import annotations

import numpy as np
import torch

from byheart.protocol.codec.entropy import LARGEST, NARROWEST, LevelDecoder, LevelEncoder
from byheart.protocol.codec.levels import (
    UNITS,
    count_bits,
    count_coded,
    finest_step,
    from_levels,
    grid,
    put_levels,
    take_levels,
    to_levels,
)

WIDTHS = torch.arange(600, -400, -20, dtype=torch.int32)


def components(tokens: int, *, loud: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    sign = torch.where(torch.rand(tokens, len(WIDTHS), generator=generator) < 0.5, -1.0, 1.0)
    size = -torch.rand(tokens, len(WIDTHS), generator=generator).clamp(min=1e-6).log()
    each = torch.where(torch.arange(tokens) % 2 == 0, loud, 1 / loud)
    return sign * size * each[:, None] * 2.0 ** (WIDTHS / UNITS)


def coded(y: torch.Tensor, step: int) -> tuple[int, torch.Tensor]:
    tables, coder = grid(WIDTHS, step), LevelEncoder()
    levels = to_levels(y.T, step)[: count_coded(tables)].numpy()
    put_levels(coder, levels, tables)
    taken, used = take_levels(LevelDecoder(coder.bytes()), len(y), tables)
    assert (taken == levels).all()
    back = torch.zeros(y.shape)
    back[:, : len(levels)] = from_levels(taken, used, step).T
    return len(coder.bytes()), back


def test_components_come_back_within_a_step() -> None:
    y = components(200)
    for step in (-300, 0, 300):
        _, back = coded(y, step)
        assert (back - y)[:, :30].abs().max() <= 2 ** (step / UNITS)
        assert (back - y).abs().mean() < 0.3 * 2 ** (step / UNITS)


def test_a_finer_step_costs_more_and_loses_less() -> None:
    y = components(300)
    made = [coded(y, step) for step in (-256, 0, 256)]
    sizes, losses = [size for size, _ in made], [float((back - y).pow(2).mean()) for _, back in made]
    assert sizes == sorted(sizes, reverse=True)
    assert losses == sorted(losses)


def test_the_mean_of_a_level_is_nearer_than_its_middle() -> None:
    y, step = components(2000), 256
    levels, tables = to_levels(y.T, step).numpy(), grid(WIDTHS, step)
    used = np.broadcast_to(tables.clip(NARROWEST)[:, None], levels.shape)
    middle = np.sign(levels) * (np.abs(levels) - 0.1) * 2 ** (step / UNITS)
    nonzero = levels != 0
    exact = y.T.numpy()
    error = (from_levels(levels, used, step).numpy() - exact)[nonzero]
    assert (error**2).mean() < 0.98 * ((middle - exact)[nonzero] ** 2).mean()


def test_loud_and_quiet_tokens_are_told_apart() -> None:
    even, uneven = components(200), components(200, loud=3.0)
    tables = grid(WIDTHS, 0)
    for y, least, most in ((even, 0.97, 1.03), (uneven, 0.7, 0.95)):
        size, _ = coded(y, 0)
        assert least < 8 * size / count_bits(to_levels(y.T, 0), tables) < most


def test_no_level_is_cut_off_at_the_finest_step() -> None:
    y = 1e4 * components(50).T.contiguous()
    step = finest_step(y)
    assert int(to_levels(y, step).abs().max()) <= LARGEST
    assert (to_levels(y, step) * 2 ** (step / UNITS) - y).abs().max() <= 2 ** (step / UNITS)
