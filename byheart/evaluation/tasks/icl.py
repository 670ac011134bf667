"""Learning a classification from demonstrations that are written one by one (CCM's setting of MetaICL, 2312.03414).

Not the paper's 26 data sets but any records with ``dataset``, ``context``, ``choices`` and ``answers``. Several queries
share one draw of demonstrations, so that each is written once for all of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from byheart.data.records import Fields, required
from byheart.evaluation.results import Result, means
from byheart.evaluation.task import Answer, Item, Part, Question, Task, answers_of

# Left out of the published mean, because it varies too much.
_LEFT_OUT = "glue-mrpc"


class ICL(Task):
    """Accuracy after so many demonstrations of a classification were written, by data set and in the mean (CCM).

    The label of the least loss per token answers. The published evaluation scores poem_sentiment over its prior and
    drops each data set's last example; this one does neither. A data set with a single label is left out.

    Args:
        demonstrations: how many were written when queries are asked.
        queries: that share one draw of demonstrations; more are quicker, fewer average over more draws.
    """

    name = "icl"
    asks = "choices"

    def __init__(self, *, demonstrations: Sequence[int] = (0, 2, 4, 8, 16), queries: int = 16) -> None:
        if not demonstrations or min(demonstrations) < 0 or queries < 1:
            raise ValueError(
                f"demonstrations must be numbers from 0 on and queries 1 or more; they are {demonstrations}, {queries}"
            )
        self.demonstrations, self.queries = demonstrations, queries

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """Draws of demonstrations with their queries, one of each data set in turn; each record is a query once."""
        found = _grouped(records)
        draw = random.Random(seed)
        kinds = [list(self._drawn(name, found[name], draw)) for name in sorted(found)]
        for draws in zip_longest(*kinds):
            yield from (item for item in draws if item is not None)

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """Whether the likeliest label, by its loss per token, is the right one."""
        return {"accuracy": float(question.choices[answer.best(each_token=True)] == question.answers[0])}

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """The mean over data sets, in which each counts once."""
        kept = [row for row in rows if not str(row.conditions.get("set")).startswith(_LEFT_OUT)]
        return means(kept, over="set", metric="accuracy")

    def _drawn(self, name: str, pairs: list[tuple[str, str]], draw: random.Random) -> Iterator[Item]:
        labels = tuple(sorted({label for _, label in pairs}))
        if len(labels) < 2:
            return
        draw.shuffle(pairs)
        for first in range(0, len(pairs), self.queries):
            asked = pairs[first : first + self.queries]
            rest = pairs[:first] + pairs[first + self.queries :]
            shown = draw.sample(rest, min(max(self.demonstrations), len(rest)))
            questions = [
                Question(
                    f"{text}\n",
                    (label,),
                    labels,
                    after=k,
                    conditions={"demonstrations": k, "set": name},
                    use_chat_template=False,
                )
                for k in sorted(set(self.demonstrations))
                if k <= len(shown)
                for text, label in asked
            ]
            if questions:
                yield Item(
                    tuple(f"{text}\n{label}\n" for text, label in shown), tuple(questions), use_chat_template=False
                )


def _grouped(records: Sequence[Fields]) -> dict[str, list[tuple[str, str]]]:
    """Inputs and labels by data set, in the order of the records."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for number, record in enumerate(records, start=1):
        name = str(required(record, "dataset", number))
        text = str(required(record, "context", number)).strip()
        groups.setdefault(name, []).append((text, answers_of(record, number)[0]))
    return groups
