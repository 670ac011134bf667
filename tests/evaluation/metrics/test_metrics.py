"""Which way each metric is better."""

from __future__ import annotations

import pytest

from byheart.evaluation.metrics import LAW, higher_is_better


@pytest.mark.parametrize("name", ["loss", "perplexity", "failures", "absolute_error", "squared_error", "rmse"])
def test_a_loss_is_better_if_lower_and_so_are_its_mean_and_its_difference(name: str) -> None:
    for derived in (name, f"mean_{name}", f"{name}_difference"):
        assert higher_is_better(derived) is False


@pytest.mark.parametrize("name", ["accuracy", "gap_closed", "mean_accuracy", "macro_f1", "of_our_own", "loss_of_hair"])
def test_what_is_not_declared_is_better_if_higher(name: str) -> None:
    assert higher_is_better(name) is True


@pytest.mark.parametrize("name", [LAW, "gap_closed_by_other_text"])
def test_a_control_and_a_law_have_no_better(name: str) -> None:
    assert higher_is_better(name) is None
    assert higher_is_better(f"{name}_difference") is None
