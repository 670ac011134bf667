"""Tasks of text classification, multiple choice and questions about a passage, without any memory of a text.

The evaluation of "Empirical Study on Updating Key-Value Memories in Transformer Feed-forward Layers" (Qiu et al. 2024,
arXiv 2402.12233), for a model whose feed-forward keys or values were tuned. How a record is asked: ``data.prompts``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from byheart.data.prompts import WORDS, fill_prompt
from byheart.data.records import Fields
from byheart.errors import InputError
from byheart.evaluation.results import Result, means
from byheart.evaluation.task import Answer, Item, Part, Question, Task, label_parts, shuffled


class Multitask(Task):
    """Accuracy and macro F1 of classification and multiple choice by the model's own weights (the feed-forward study).

    The likeliest label answers, after a space. ``published``: the words with which the model continues must be the
    label verbatim; only whitespace around them is removed. Questions that are answered in words of their own (NewsQA,
    HotpotQA, SQuAD) have no labels and are asked as published alone; any right answer is a hit.

    Args:
        words: a passage is cut after so many; 0 is never.
        each_token: compare labels by their loss per token, not in total.
    """

    name = "multitask"
    max_tokens = 20

    def __init__(self, *, words: int = WORDS, each_token: bool = False, published: bool = False) -> None:
        self.words, self.each_token, self.published = words, each_token, published
        self.asks = "words" if published else "choices"

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per record; nothing is written."""
        for number, record in shuffled(records, seed):
            found = fill_prompt(record, number, words=self.words)
            # Beside words, choices would be measured for nothing.
            choices = () if self.published else tuple(f" {label}" for label in found.labels)
            if not found.labels and not self.published:
                raise InputError(
                    f"Record {number} of '{found.dataset}' is answered in words, not by one of several labels; give "
                    "-o published=true to have words generated and compared."
                )
            question = Question(
                found.text,
                (found.right, *found.others),
                choices,
                use_chat_template=False,
                conditions={"set": found.dataset},
                record=number,
            )
            yield Item((), (question,))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """Whether the label is the right one, and its share of each label's F1, stray words among the labels."""
        label = answer.text if self.published else question.choices[answer.best(each_token=self.each_token)].strip()
        right = label if label in question.answers else question.answers[0]
        return {**label_parts(label, right)}

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """The means over data sets, where there are several."""
        return [row for metric in ("accuracy", "macro_f1") for row in means(rows, over="set", metric=metric)]
