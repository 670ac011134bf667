"""The twin of ``byheart.methods.retrieval.bm25``: word by word, segment by segment."""

from __future__ import annotations

import math
from collections.abc import Sequence


def scores(segments: Sequence[Sequence[int]], question: Sequence[int], *, k1: float, b: float) -> list[float]:
    """How well each segment answers a question."""
    mean = sum(map(len, segments)) / len(segments)
    found = []
    for segment in segments:
        score = 0.0
        for word in question:
            having = sum(word in other for other in segments)
            idf = math.log(1 + (len(segments) - having + 0.5) / (having + 0.5))
            tf = segment.count(word)
            score += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(segment) / mean))
        found.append(score)
    return found
