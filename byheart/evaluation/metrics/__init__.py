"""Scores of answers, as published, and what is added to the names of metrics."""

from __future__ import annotations

DIFFERENCE = "_difference"
MEAN = "mean_"
LAW = "law"
CONTROLS = {"nothing": "_over_nothing", "other": "_over_other_text"}
"""What is written in place of an item's text, and the end of the metric that says how much more the text gives."""
