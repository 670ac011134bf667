"""Scores of answers, as published, and which way each metric is better."""

from __future__ import annotations

DIFFERENCE = "_difference"
MEAN = "mean_"
LAW = "law"
# The control shows what a memory does without its text, the law what a paper expects.
_NEITHER = ("gap_closed_by_other_text", LAW)
_LOWER = ("loss", "perplexity", "failures", "absolute_error", "squared_error", "rmse")


def higher_is_better(metric: str) -> bool | None:
    """Whether more of a metric is better, None where neither is; a mean or a difference is as its metric."""
    base = metric.removeprefix(MEAN).removesuffix(DIFFERENCE)
    return None if base in _NEITHER else base not in _LOWER
