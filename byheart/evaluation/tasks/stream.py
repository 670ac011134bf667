"""Endless text under a fixed number of bytes: each segment is predicted, then written (CCM's streaming, 2312.03414).

The published setting keeps 160 slots of PG19's text, and counts every token's loss with all that is kept before it.
Here the first words of a segment are given as a prompt, and the rest is predicted; the bytes are those of the
method, such as ``window:sinks=1;recent=159``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from byheart.data.records import Fields, required
from byheart.evaluation.task import Item, Question, shuffled
from byheart.evaluation.tasks.perplexity import Perplexity


class Stream(Perplexity):
    """Perplexity of a long text, segment by segment, each predicted before it is written (CCM).

    Args:
        words: of a segment.
        given: words at the start of a segment that are not predicted.
        pieces: segments of a text, at most; 0 is all.
        block: segments whose losses are one number.
    """

    name = "stream"

    def __init__(self, *, words: int = 64, given: int = 4, pieces: int = 64, block: int = 8) -> None:
        if not 0 < given < words or pieces < 0 or block < 1:
            raise ValueError(
                "given must be between 0 and words, pieces 0 or more and block 1 or more; they are "
                f"{given} of {words}, {pieces} and {block}"
            )
        self.words, self.given, self.pieces, self.block = words, given, pieces, block

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per text; of its last words, what makes no whole segment is left out."""
        for number, record in shuffled(records, seed):
            # Whitespace belongs to the word after it: segments joined are the text.
            words = re.findall(r"\s*\S+", str(required(record, "context", number)))
            segments = [words[n : n + self.words] for n in range(0, len(words) - self.words + 1, self.words)]
            segments = segments[: self.pieces or None]
            if segments:
                questions = tuple(self._question(n, segment) for n, segment in enumerate(segments))
                yield Item(tuple("".join(segment) for segment in segments[:-1]), questions, use_chat_template=False)

    def _question(self, before: int, segment: Sequence[str]) -> Question:
        """What is asked after so many segments."""
        return Question(
            "".join(segment[: self.given]),
            choices=("".join(segment[self.given :]),),
            after=before,
            conditions={"pieces": before // self.block * self.block},
            use_chat_template=False,
        )
