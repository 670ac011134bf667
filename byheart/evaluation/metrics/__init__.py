"""Scores of answers, as published, and which way each metric is better."""

from __future__ import annotations

from dataclasses import dataclass

DIFFERENCE = "_difference"
MEAN = "mean_"


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation gives; ``higher_is_better`` is None for one that has no better."""

    name: str
    higher_is_better: bool | None = True


_LOWER = ("loss", "perplexity", "failures", "absolute_error", "squared_error", "rmse")
# The control shows what a memory does without its text, the law what a paper expects.
CONTROL = Metric("gap_closed_by_other_text", None)
LAW = Metric("law", None)
DECLARED = {metric.name: metric for metric in (*(Metric(name, False) for name in _LOWER), CONTROL, LAW)}
"""All metrics of which more is not better."""


def declared(name: str) -> Metric:
    """The metric of this name; a mean or a difference is better the way its metric is, an undeclared one if higher."""
    base = name.removeprefix(MEAN).removesuffix(DIFFERENCE)
    return Metric(name, DECLARED[base].higher_is_better if base in DECLARED else True)
