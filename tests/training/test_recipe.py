"""The learning rate of every step, and what else a recipe says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from byheart.protocol.objective import TARGETS_ONLY, Objective
from byheart.training.recipe import Recipe


def naive_rate(recipe: Recipe, step: int) -> float:
    """A straight line up, then half a cosine down."""
    rising = max(round(recipe.warmup * recipe.steps), 1)
    if step < rising:
        return recipe.learning_rate / rising * (step + 1)
    share = (step - rising) / max(recipe.steps - rising, 1)
    return recipe.learning_rate * math.cos(share * math.pi / 2) ** 2


@given(st.integers(1, 300), st.floats(0, 1), st.floats(1e-6, 1))
def test_it_rises_in_a_line_and_falls_by_a_cosine(steps: int, warmup: float, highest: float) -> None:
    recipe = Recipe(steps=steps, warmup=warmup, learning_rate=highest)
    rates = [recipe.rate(step) for step in range(steps)]
    assert rates == pytest.approx([naive_rate(recipe, step) for step in range(steps)], rel=1e-9, abs=1e-12)
    assert all(0 <= rate <= highest * (1 + 1e-12) for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_first_step_learns_even_without_a_warm_up() -> None:
    assert Recipe(steps=10, warmup=0.0, learning_rate=0.5).rate(0) == 0.5


def test_a_single_step_takes_the_highest_rate() -> None:
    assert Recipe(steps=1, learning_rate=0.5).rate(0) == 0.5


def test_a_run_that_only_warms_up_ends_at_its_highest_rate() -> None:
    recipe = Recipe(steps=4, warmup=1.0, learning_rate=1.0)
    assert [recipe.rate(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_unless_it_says_otherwise_only_targets_count() -> None:
    assert Recipe().objective == TARGETS_ONLY == Objective(teacher=0.0, every_segment=0.0, checkpoint_writes=False)


def test_a_constant_rate_neither_rises_nor_falls() -> None:
    recipe = Recipe(steps=4, warmup=0.5, learning_rate=1.0, schedule="constant")
    assert [recipe.rate(step) for step in range(4)] == [1.0] * 4
