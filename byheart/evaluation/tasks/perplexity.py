"""What tasks share that predict text and give its perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from byheart.evaluation.results import Result
from byheart.evaluation.task import Answer, Part, Question, Task


class Perplexity(Task):
    """A task whose questions have one choice, the text that is predicted."""

    asks: Literal["words", "choices", "target", "stream"] = "choices"
    higher_is_better: ClassVar = {"loss": False}

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """The loss of the predicted text, so that all tokens of all texts count the same."""
        return {"loss": Part(answer.losses[0], answer.tokens[0])}

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """Perplexities, which papers print."""
        return [row.mapped("perplexity", math.exp) for row in rows if row.metric == "loss"]
