"""How much of a text a memory keeps, in the model's own terms: the gap that it closes between no text and the full one.

    gap closed = (loss without the text - loss with the memory) / (loss without the text - loss with the full text)

0 is a memory that helps nothing, 1 is one as good as the text itself. Every method sees the same windows: a history is
written, as one text or turn by turn where it is a dialogue, and what follows it (lm), the answer to a question about it
(qa) or the next reply (dialog) is predicted. See docs/explanation/measures.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from byheart.data.mixture import Mixture, Weighted
from byheart.data.records import DataSet, Fields
from byheart.errors import InputError, require_positive
from byheart.evaluation.task import Answer, Item, Part, Question, Task, Totals
from byheart.text.encoder import ChatEncoder


class Gap(Task):
    """The share of the gap between no text and full text that a memory closes, and the loss per token.

    Args:
        windows: of each data set and length of history, at most.
        history: how many segments are written; all rows are given for each number.
        between: tokens of unrelated text that every reader sees first; all rows are given for each number.
        control: also measure each method with the memory of another window.
        segment_tokens: of a segment.
        target_tokens: that are predicted, where text continues.
    """

    name = "gap"
    asks = "target"
    references = ("nothing", "full")
    pooled = True
    # The control shows what a memory does without its text.
    higher_is_better: ClassVar = {"loss": False, "gap_closed_by_other_text": None}
    encoder: ChatEncoder

    def __init__(
        self,
        *,
        windows: int = 64,
        history: Sequence[int] = (4,),
        between: Sequence[int] = (0,),
        control: bool = False,
        segment_tokens: int = 64,
        target_tokens: int = 64,
    ) -> None:
        require_positive(windows=windows)
        if min(history, default=0) < 1 or min(between, default=-1) < 0:
            raise ValueError(
                "history must be numbers of 1 segment or more and between of 0 tokens or more, such as [1,4]; "
                f"they are {history} and {between}"
            )
        self.windows, self.history, self.between, self.control = windows, history, between, control
        self.segment_tokens, self.target_tokens = segment_tokens, target_tokens

    def split(self, encoder: ChatEncoder) -> Sequence[Task]:
        """One for each length of history."""
        tasks = [copy.copy(self) for _ in self.history]
        for task, segments in zip(tasks, self.history, strict=True):
            task.history, task.encoder = (segments,), encoder
        return tasks

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per window, with a question for each number of tokens between; only the tasks of ``split`` have any."""
        data = DataSet.of(records)
        turns = all(record.task == "dialog" for record in data.records)
        (segments,) = self.history
        mixture = Mixture(self.encoder, [Weighted(data)], batch=1, seed=seed)
        mixture = replace(mixture, segment_tokens=self.segment_tokens, target_tokens=self.target_tokens)
        mixtures = [replace(mixture, target_distractor_tokens=between) for between in self.between]
        forms = [each.windows(self.windows, segments) for each in mixtures]
        for episodes in zip(*forms, strict=True):
            texts = [tuple(segment.tolist()) for segment in episodes[0].segments]
            questions = tuple(
                Question(
                    target=tuple(episode.target.tolist()),
                    target_start=episode.answer,
                    conditions={"segments": segments, "between": between},
                )
                for episode, between in zip(episodes, self.between, strict=True)
            )
            yield Item(tuple(texts) if turns else (tuple(chain.from_iterable(texts)),), questions)

    def batches(self, items: Mapping[int, Item], size: int) -> list[list[int]]:
        """In their order. Raises InputError where a control has no other window."""
        numbers = list(items)
        if self.control and min(size, len(numbers)) == 1:
            raise InputError(
                f"A control needs another window beside each; here are {len(numbers)}, in batches of {size}."
            )
        # A last batch of one window would have no other window for the control.
        starts = [start for start in range(0, len(numbers), size) if start == 0 or len(numbers) - start > 1]
        return [numbers[start:stop] for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True)]

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """The target's loss, so that all tokens count the same."""
        return {"loss": Part(answer.losses[0], answer.tokens[0])}

    def compare(self, spec: str, totals: Mapping[str, Totals], control: Totals) -> Totals:
        """The gap closed; by another window's memory too, where that was measured."""
        floor, ceiling = (totals[name]["loss"] for name in self.references)
        losses = {} if spec in self.references else {"gap_closed": totals[spec]["loss"]}
        if control and spec != self.references[0]:
            losses["gap_closed_by_other_text"] = control["loss"]
        return {metric: closed(floor, ceiling, loss) for metric, loss in losses.items()}


def closed(
    floor: Float[Tensor, "..."], ceiling: Float[Tensor, "..."], loss: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """The gap closed, from summed losses of the same windows."""
    share: Tensor = (floor - loss) / (floor - ceiling)
    return share
