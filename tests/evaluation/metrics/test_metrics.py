"""Which way each metric is better."""

from __future__ import annotations

import pytest

from byheart.evaluation.metrics import CONTROL, LAW, Metric, declared


@pytest.mark.parametrize("name", ["loss", "perplexity", "failures", "absolute_error", "squared_error", "rmse"])
def test_a_loss_is_better_if_lower_and_so_are_its_mean_and_its_difference(name: str) -> None:
    for derived in (name, f"mean_{name}", f"{name}_difference"):
        assert declared(derived) == Metric(derived, higher_is_better=False)


@pytest.mark.parametrize("name", ["accuracy", "gap_closed", "mean_accuracy", "macro_f1", "of_our_own", "loss_of_hair"])
def test_what_is_not_declared_is_better_if_higher(name: str) -> None:
    assert declared(name) == Metric(name, higher_is_better=True)


def test_a_control_and_a_law_have_no_better() -> None:
    for metric in (CONTROL, LAW):
        assert declared(metric.name) == metric
        assert metric.higher_is_better is None
        assert declared(f"{metric.name}_difference").higher_is_better is None
