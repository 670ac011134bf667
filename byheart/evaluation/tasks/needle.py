"""A needle in a haystack: one sentence at some depth of a text that has nothing to do with it, asked for.

Kamradt's test (https://github.com/gkamradt/LLMTest_NeedleInAHaystack), with a number that no model can know.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product

from byheart.data.records import Fields, required
from byheart.errors import InputError
from byheart.evaluation.metrics.answers import exact_hit
from byheart.evaluation.results import Result, pool_shares
from byheart.evaluation.task import Answer, Item, Part, Question, Task, shuffled

_ENDS = (".", "!", "?", '."', '!"', '?"')
_CITIES = (
    "Accra", "Athens", "Bergen", "Bilbao", "Boston", "Cairo", "Cork", "Delhi", "Dresden", "Geneva", "Hanoi", "Havana",
    "Jakarta", "Kyoto", "Lagos", "Lima", "Lisbon", "Lyon", "Malmo", "Milan", "Nairobi", "Oslo", "Perth", "Prague",
    "Quito", "Riga", "Seattle", "Seoul", "Tunis", "Turin", "Vienna", "Zagreb",
)  # fmt: skip


class Needle(Task):
    """Whether a sentence at some depth of a long text is found again, by depth and length.

    Args:
        lengths: words of the text, without the needle.
        depths: how far in the needle stands, from 0, before everything, to 1, after it; it follows the last sentence
            that ends before there, if one ends within the twentieth of the text before.
        needles: of each length and depth.
    """

    name = "needle"

    def __init__(
        self,
        *,
        lengths: Sequence[int] = (200, 1000),
        depths: Sequence[float] = (0, 0.25, 0.5, 0.75, 1),
        needles: int = 6,
    ) -> None:
        if not lengths or min(lengths) < 1 or needles < 1:
            raise ValueError(f"lengths and needles must be 1 or more; they are {lengths} and {needles}")
        if not depths or min(depths) < 0 or max(depths) > 1:
            raise ValueError(f"depths must be between 0 and 1; they are {depths}")
        self.lengths = lengths
        self.depths = depths
        self.needles = needles

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One a needle; all lengths and depths come before the next needle."""
        texts = (str(required(record, "context", number)) for number, record in shuffled(records, seed))
        filler = list(chain.from_iterable(text.split() for text in texts))
        if len(filler) < max(self.lengths):
            raise InputError(f"The data have {len(filler)} words, but the longest text is to have {max(self.lengths)}.")
        draw = random.Random(f"needle {seed}")
        for _, length, depth in product(range(self.needles), self.lengths, self.depths):
            begin = draw.randrange(len(filler) - length + 1)
            yield self._item(filler[begin : begin + length], depth, draw)

    def _item(self, words: Sequence[str], depth: float, draw: random.Random) -> Item:
        city, number = draw.choice(_CITIES), str(draw.randrange(10_000, 100_000))
        place = _place(words, depth)
        text = " ".join([*words[:place], f"The secret number of {city} is {number}.", *words[place:]])
        at = {"words": len(words), "depth_percent": round(100 * depth)}
        return Item((text,), (Question(f"What is the secret number of {city}?", (number,), conditions=at),))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """Whether the answer holds the number."""
        return {"accuracy": float(exact_hit(answer.text, question.answers[0]))}

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """The share that is found at all depths together, by length."""
        return pool_shares(rows, over="depth_percent", metric="accuracy")


def _place(words: Sequence[str], depth: float) -> int:
    """How many words stand before a needle of that depth."""
    wanted = round(depth * len(words))
    near = range(wanted, max(wanted - len(words) // 20, 0), -1) if depth < 1 else ()
    return next((place for place in near if words[place - 1].endswith(_ENDS)), wanted)
