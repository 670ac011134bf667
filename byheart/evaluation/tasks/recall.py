"""Key-value retrieval of Lost in the Middle (arXiv 2307.03172): one value out of a JSON object of random ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from byheart.data.records import Fields, required
from byheart.errors import InputError
from byheart.evaluation.metrics.answers import best, exact_hit
from byheart.evaluation.task import Answer, Item, Part, Question, Task, answers_of, shuffled


class Recall(Task):
    """Whether the value of a random key is recalled verbatim, by how many pairs were written.

    Args:
        pairs: kept of each record's object; the asked one is at a random place among them.
    """

    name = "recall"
    # As published; keys and values make no words, and models say the key again.
    max_tokens = 100

    def __init__(self, *, pairs: Sequence[int] = (5, 10, 25)) -> None:
        if not pairs or min(pairs) < 1:
            raise ValueError(f"pairs must be 1 or more; they are {pairs}")
        self.pairs = pairs

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One for each record and number of pairs."""
        for number, record in shuffled(records, seed):
            key, answers = str(required(record, "question", number)), answers_of(record, number)
            others = _pairs(record, key, number)
            asked = (key, others.pop(key))
            draw = random.Random(f"{seed} {number}")
            for pairs in self.pairs:
                if pairs > len(others) + 1:
                    raise InputError(
                        f"Record {number} has {len(others) + 1} pairs in 'context'; {pairs} are asked for."
                    )
                chosen = draw.sample(list(others.items()), pairs - 1)
                chosen.insert(draw.randrange(pairs), asked)
                prompt = f'What is the value of the key "{key}"?'
                yield Item((json.dumps(dict(chosen)),), (Question(prompt, answers, conditions={"pairs": pairs}),))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """Whether the answer holds the value."""
        return {"accuracy": best(exact_hit, answer.text, question.answers)}


def _pairs(record: Fields, key: str, number: int) -> dict[str, Any]:
    """The object in a record's context. Raises InputError."""
    try:
        found = json.loads(str(required(record, "context", number)))
    except ValueError as error:
        raise InputError(f"Record {number}: its 'context' is not JSON: {error}.") from error
    if not isinstance(found, dict) or key not in found:
        raise InputError(f"Record {number}: its 'context' has no key '{key}', for which its 'question' asks.")
    return found
