"""Scores of answers, as published, and what is added to the names of metrics."""

from __future__ import annotations

DIFFERENCE = "_difference"
MEAN = "mean_"
LAW = "law"
